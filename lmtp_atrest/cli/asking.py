"""What commands that ask the unlock service share: the request, secrets, and how results print."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from lmtp_atrest.cli import paper
from lmtp_atrest.cli.terminal import SECRET_LIMIT, note, print_json, read_secret
from lmtp_atrest.config import Config
from lmtp_atrest.errors import UsageError
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import Request, Role

F = TypeVar("F", bound=Callable[..., Any])


def ask(config: Config, request: Request) -> Reply:
    """One request to the admin socket of the unlock service."""
    with SyncClient(config.unlock.sockets / "admin.sock", Role.ADMIN) as client:
        return client.ask(request)


def fd_option(name: str, what: str) -> Callable[[F], F]:
    """`--<name>-fd N`: a secret from a file descriptor instead of a question."""
    return click.option(
        f"--{name}-fd",
        type=int,
        metavar="N",
        help=f"Read {what} from this file descriptor, up to a line end, instead of asking.",
    )


def stdin_option(function: F) -> F:
    """`--from-stdin`: address, old and new secret, as programs that change passwords have them.

    Nothing is left to be an argument, so that sudo can allow one line and no other.
    """
    return click.option(
        "--from-stdin",
        is_flag=True,
        help="Read address, old and new password from standard input, each ended by NUL.",
    )(function)


def change_from_stdin() -> tuple[str, Secret, Secret]:
    """Address, old and new secret; UsageError where these are not there."""
    parts = sys.stdin.buffer.read(3 * SECRET_LIMIT).split(b"\0")
    if len(parts) != 4 or parts[3] or not all(parts[:3]):
        message = "standard input holds no address and two passwords, each ended by NUL"
        raise UsageError(message)
    address, old, new = parts[:3]
    return address.decode("utf-8", "surrogateescape"), Secret(old), Secret(new)


def change_from_terminal(
    address: str | None, old: tuple[int | None, str], new: tuple[int | None, str]
) -> tuple[str, Secret, Secret]:
    """The same by descriptors and prompts; UsageError without an address."""
    if address is None:
        message = "give an address"
        raise UsageError(message)
    return address, read_secret(*old), read_secret(*new, twice=True)


def page_option(function: F) -> F:
    """`--page FILE`: where to write a recovery code as a page to print."""
    return click.option(
        "--page",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the recovery code to this new file, as a page to print; delete it then.",
    )(function)


def confirm_address(address: str, yes: str | None, what: str) -> None:
    """UsageError unless the address is typed once more."""
    typed = yes or click.prompt(f"{what} Type the address", err=True)
    if typed != address:
        message = "the address was not repeated: nothing was changed"
        raise UsageError(message)


def print_changed(reply: Reply, as_json: bool, page: Path | None = None) -> None:
    """How an account stands after a change, what its owner gets, and what to look out for."""
    if page is not None and "code" in reply.fields:
        _write_page(page, str(reply["code"]), reply["names"][0])
    if as_json:
        print_json(dict(reply.fields))
        return
    click.echo(f"{reply['names'][0]}: {reply.result}, {reply['state']}, epoch {reply['epoch']}")
    if reply.get("admin_recovery") == "yes":
        note("the admin recovery password of this site opens this mail, too")
    if warning := reply.get("warning"):
        note(str(warning))
    if address := reply.get("code_mailed_to"):
        click.echo(f"The recovery code was mailed to {address}.")
    if code := reply.get("code"):
        drawn = paper.draws_qr(sys.stdout)
        click.echo()
        click.echo(paper.terminal(str(code), reply["names"][0], qr=drawn))
    if remaining := reply.get("readers_remaining", 0):
        note(f"IMAP sessions that may still run with what was before: {remaining}")


def _write_page(path: Path, code: str, address: str) -> None:
    text = paper.page(code, address, datetime.now(UTC).date())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        # The code counts already and is shown all the same.
        note(f"{path}: {error.strerror}; the page was not written")
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
