"""What all commands share: the configuration option, secrets, and printing."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from lmtp_atrest import config as config_module
from lmtp_atrest.config import Config
from lmtp_atrest.errors import UsageError
from lmtp_atrest.secret import Secret

DEFAULT_CONFIG = Path("/etc/lmtp-atrest/lmtp-atrest.yaml")
SECRET_LIMIT = 4096

F = TypeVar("F", bound=Callable[..., Any])


def _load(_context: click.Context, _option: click.Parameter, path: Path) -> Config:
    return config_module.load(path)


def config_option(function: F) -> F:
    """`--config FILE`, read and checked, as the argument `config`."""
    return click.option(
        "-c",
        "--config",
        "config",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        show_default=True,
        callback=_load,
        help="The configuration file.",
    )(function)


def json_option(function: F) -> F:
    """`--json`, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")(function)


def password_option(function: F) -> F:
    """`--password-fd N`, as the argument `password_fd`."""
    return click.option(
        "--password-fd",
        type=int,
        metavar="N",
        help="Read the password from this file descriptor, up to a line end, instead of asking.",
    )(function)


def read_secret(password_fd: int | None, prompt: str, *, twice: bool = False) -> Secret:
    """A secret from a descriptor or from the terminal; UsageError if there is neither."""
    if password_fd is not None:
        return _secret_from(password_fd)
    if not sys.stdin.isatty():
        message = "no terminal to ask for the password on: give --password-fd N"
        raise UsageError(message)
    text = click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True)
    return Secret(str(text).encode())


def _secret_from(descriptor: int) -> Secret:
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            line = file.readline(SECRET_LIMIT + 1)
    except OSError as error:
        message = f"file descriptor {descriptor}: {error.strerror}"
        raise UsageError(message) from error
    secret = line.removesuffix(b"\n").removesuffix(b"\r")
    if not secret or len(secret) > SECRET_LIMIT:
        message = f"file descriptor {descriptor} holds no password"
        raise UsageError(message)
    return Secret(secret)


def print_json(value: Any) -> None:
    """One JSON value and a line end."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need to be; nothing but the rows where there are none."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(line[i]) for line in (list(heads), *cells)) for i in range(len(heads))]
    for line in (list(heads), *cells):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def note(text: str) -> None:
    """A line for the human, not part of the result."""
    click.echo(f"lmtp-atrest: {text}", err=True)


def when(milliseconds: int) -> str:
    """A time in words of ISO 8601, UTC, to the second."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
