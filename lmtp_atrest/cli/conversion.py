"""Conversion of mail that is already there, in the foreground: run, status, pause."""

import base64
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from lmtp_atrest import users
from lmtp_atrest.cli.asking import ask
from lmtp_atrest.cli.terminal import (
    config_option,
    json_option,
    note,
    password_option,
    print_json,
    print_table,
    read_secret,
    when,
)
from lmtp_atrest.config import Config
from lmtp_atrest.conversion import Counts, Direction, Job, Place, States, convert
from lmtp_atrest.crypto.dcrypt_header import HEADER_LIMIT
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import Damaged, NotFound, UsageError, WrongState
from lmtp_atrest.maildir import StorageFailure
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import GrantUnwrap, SyncClient
from lmtp_atrest.unlock.requests import (
    AccountList,
    AccountShow,
    ConvertDone,
    ConvertGrant,
    Lookup,
    Role,
)

PLAIN_LINE_SECONDS = 10.0
# A run of fewer says little about the next: most of its time went to waiting.
RATE_MESSAGES = 500


@click.group()
def conversion() -> None:
    """Encrypt, decrypt or encrypt anew the mail that is already there."""


@conversion.command()
@config_option
@click.argument("address", required=False)
@click.option("--all", "everybody", is_flag=True, help="All encrypted accounts.")
@click.option(
    "--to",
    "direction",
    type=click.Choice([direction.value for direction in Direction]),
    default=Direction.ENCRYPT.value,
    show_default=True,
    help="encrypt what is plain; decrypt all (after account disable); rewrap to the present key, "
    "or reseal to it wholly (after account rotate --compromised).",
)
@click.option(
    "--by",
    type=click.Choice(["password", "code", "admin"]),
    default="password",
    show_default=True,
    help="What opens the mail, where it must be opened.",
)
@click.option("--dry-run", is_flag=True, help="Only count, and say how long it may take.")
@password_option
@json_option
def run(
    config: Config,
    address: str | None,
    everybody: bool,
    direction: str,
    by: str,
    dry_run: bool,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Convert all folders of an account, in place and in use.

    A run may be stopped at any time, and called again: it goes on where it was. Encrypting needs
    no password.
    """
    if (address is None) != everybody or (everybody and direction != "encrypt"):
        message = "give an address; --all goes with --to encrypt only"
        raise UsageError(message)
    named = [address] if address else _encrypted(config)
    if dry_run:
        _print_results(_counted_all(config, named, Direction(direction)), as_json)
        return
    secret = None if direction == "encrypt" else read_secret(password_fd, f"The {by} of {address}")
    tasks = [_Task.of(config, name, Direction(direction), secret, by) for name in named]
    # From here on as the owner of the Maildirs: no account's files may reach another's.
    users.become(config.lmtp.user)
    _finish(list(_run_all(config, tasks, as_json)), as_json)


def decrypt_account(
    config: Config, address: str, secret: Secret, *, by: str, as_json: bool
) -> None:
    """Store all mail of an account that is leaving plain; Damaged where some does not open."""
    task = _Task.of(config, address, Direction.DECRYPT, secret, by)
    users.become(config.lmtp.user)
    _finish(list(_run_all(config, [task], as_json)), as_json)


def _finish(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    _print_results(results, as_json)
    failed = [f for result in results for f in result["failures"]]
    if failed:
        text = [f"{f['folder']}/{f['name']}: {f['reason']}" for f in failed]
        raise Damaged("\n".join([f"{len(failed)} messages stayed as they were", *text]))


@dataclass(frozen=True, slots=True)
class _Task:
    """One account with what its conversion needs, all asked for before root's rights go."""

    name: str
    place: Place
    job: Job
    grant: str = ""
    unwrap: GrantUnwrap | None = None

    @classmethod
    def of(
        cls, config: Config, name: str, direction: Direction, secret: Secret | None, by: str
    ) -> "_Task":
        shown = ask(config, AccountShow(name)).fields
        if shown["kind"] != Kind.MAIL_CRYPT:
            message = (
                f"{name} encrypts to certificates of its owner ({shown['kind']}): mail that is "
                "already there is not converted for this kind"
            )
            raise WrongState(message)
        place, grant, unwrap, public_key = _place_of(config, shown), "", None, None
        if secret is None:
            if shown["state"] != "encrypted":
                message = f"{name} is {shown['state']}, not encrypted"
                raise WrongState(message)
        else:
            count = str(2 * _messages(place) + 1000)
            reply = ask(config, ConvertGrant(name, secret, direction.value, count, by))
            grant = str(reply["grant"])
            unwrap = GrantUnwrap(*_convert_socket(config), grant)  # connects when it is asked
        if direction is not Direction.DECRYPT:
            public_key = _public_key(config, name)
        job = Job(direction, public_key, unwrap, config.atrest.pbkdf2_rounds)
        return cls(shown["names"][0], place, job, grant, unwrap)


def _place_of(config: Config, shown: Any) -> Place:
    """Where the mail of an account lies, by what `account-show` says of it."""
    since = int(shown["vault_key_since"])
    return Place.of(
        config, shown["account"], shown["home"], shown["maildir"], since, shown["names"]
    )


def _convert_socket(config: Config) -> tuple[Path, Role]:
    role = Role.CONVERT if config.lmtp.user is not None else Role.ADMIN
    return config.unlock.sockets / f"{role}.sock", role


def _run_all(config: Config, tasks: Sequence[_Task], as_json: bool) -> Iterator[dict[str, Any]]:
    states, stopping = States(config.conversion.state), threading.Event()
    states.open()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        for task in tasks:
            if not stopping.is_set():
                yield _run_one(config, task, states, stopping, as_json)
    finally:
        states.close()


def _run_one(
    config: Config, task: _Task, states: States, stopping: threading.Event, as_json: bool
) -> dict[str, Any]:
    with _progress(task, quiet=as_json) as progress:
        try:
            counts, clean = convert(
                task.place,
                task.job,
                states,
                stopping=stopping,
                progress=progress,
                exchange=config.conversion.exchange,
            )
        except NotFound:
            counts, clean = Counts(), True  # no Maildir yet: nothing to do
        finally:
            if task.unwrap is not None:
                task.unwrap.close()
    if clean and task.grant:
        path, role = _convert_socket(config)
        with SyncClient(path, role) as client:
            client.ask(ConvertDone(task.grant))
    return {"name": task.name, "clean": clean, **asdict(counts)}


@contextlib.contextmanager
def _progress(task: _Task, *, quiet: bool) -> Iterator[Callable[[Counts], None]]:
    """A bar on a terminal, a line now and then without one."""
    console = Console(stderr=True)
    total = _messages(task.place)
    if quiet:
        yield lambda _counts: None
    elif not console.is_terminal:
        yield _Lines(task.name, total)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            number = bar.add_task(task.name, total=total, rate="")
            yield _Bar(bar, number)


class _Bar:
    def __init__(self, bar: Progress, number: TaskID) -> None:
        self._bar, self._number, self._started = bar, number, time.monotonic()

    def __call__(self, counts: Counts) -> None:
        rate = counts.done / max(time.monotonic() - self._started, 0.001)
        self._bar.update(self._number, completed=counts.seen, rate=f"{rate:.0f}/s")


class _Lines:
    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._last = name, total, time.monotonic()

    def __call__(self, counts: Counts) -> None:
        if time.monotonic() - self._last >= PLAIN_LINE_SECONDS:
            self._last = time.monotonic()
            note(f"{self._name}: {counts.seen} of {self._total}, {counts.done} changed")


def _messages(place: Place) -> int:
    try:
        with place.open() as maildir:
            return sum(1 for _ in maildir.walk())
    except NotFound:
        return 0


def _encrypted(config: Config) -> list[str]:
    accounts = ask(config, AccountList())["accounts"]
    ours = [a for a in accounts if a["kind"] == Kind.MAIL_CRYPT]
    return [a["names"][0] for a in ours if a["state"] == "encrypted"]


def _counted_text(result: dict[str, Any]) -> str:
    text = f"{result['name']}: {result['to_change']} of {result['messages']} messages to change"
    text += f", {result['bytes'] / (1 << 20):.1f} MiB"
    if result["unreadable"]:
        text += f", {result['unreadable']} that cannot be read"
    if result["estimated_seconds"] is None:
        return f"{text}; no run here yet to estimate the time by"
    about = timedelta(seconds=result["estimated_seconds"])
    return f"{text}; about {about} at the {result['messages_per_second']}/s of the last such run"


def _counted_all(
    config: Config, named: Sequence[str], direction: Direction
) -> list[dict[str, Any]]:
    """What runs would do; nothing is changed, and nothing opened."""
    accounts = []
    for name in named:
        shown = ask(config, AccountShow(name)).fields
        key = None
        if direction in (Direction.REWRAP, Direction.RESEAL):
            key = _public_key(config, name)
        accounts.append((shown, Job(direction, key)))
    users.become(config.lmtp.user)
    rate = _last_rate(config, direction)
    return [_counted(_place_of(config, shown), shown, job, rate) for shown, job in accounts]


def _counted(place: Place, shown: Any, job: Job, rate: float | None) -> dict[str, Any]:
    messages = to_change = size = unreadable = 0
    with contextlib.suppress(NotFound), place.open() as maildir:
        for file in maildir.walk():
            messages += 1
            try:
                with file.open() as opened:
                    if not job.is_done(opened.read(HEADER_LIMIT)):
                        to_change += 1
                        size += os.fstat(opened.fileno()).st_size
            except NotFound:
                messages -= 1  # moved to another folder, or removed
            except (Damaged, StorageFailure):
                unreadable += 1
    return {
        "name": shown["names"][0],
        "state": shown["state"],
        "messages": messages,
        "to_change": to_change,
        "bytes": size,
        "unreadable": unreadable,
        "messages_per_second": round(rate, 1) if rate else None,
        "estimated_seconds": round(to_change / rate) if rate else None,
    }


def _last_rate(config: Config, direction: Direction) -> float | None:
    """Messages a second of the newest run here that did as much as says something."""
    states = States(config.conversion.state)
    if not states.store.path.exists():
        return None
    try:
        runs = [
            run
            for run in states.all()
            if run.direction == direction
            and run.done >= RATE_MESSAGES
            and run.updated > run.started
        ]
    finally:
        states.close()
    newest = max(runs, key=lambda run: run.updated, default=None)
    if newest is None:
        return None
    return 1000 * newest.done / (newest.updated - newest.started)


def _public_key(config: Config, name: str) -> PublicKey:
    return PublicKey.from_pem(base64.b64decode(ask(config, Lookup(name))["public_key"]))


def _print_results(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(list(results))
        return
    for result in results:
        if "messages" in result:
            click.echo(_counted_text(result))
            continue
        end = "nothing is left to do" if result["clean"] else "not everything is done"
        click.echo(
            f"{result['name']}: {result['done']} messages changed, {result['skipped']} were so "
            f"already, {result['failed']} stayed; {end}"
        )


@conversion.command()
@config_option
@json_option
def status(config: Config, as_json: bool) -> None:
    """Show what runs have done, and how far those under way are."""
    names = {a["account"]: a["names"][0] for a in ask(config, AccountList())["accounts"]}
    states = States(config.conversion.state)
    if not states.store.path.exists():
        found = []
    else:
        found = states.all()
        states.close()
    if as_json:
        print_json([{**asdict(run), "name": names.get(run.account_id, "")} for run in found])
        return
    heads = ["NAME", "WHAT", "STATE", "DONE", "FAILED", "UPDATED", "ALL DONE SINCE"]
    rows = [
        (
            names.get(run.account_id, run.account_id),
            run.direction,
            run.state,
            run.done,
            run.failed,
            when(run.updated),
            when(run.clean) if run.clean else "-",
        )
        for run in found
    ]
    print_table(heads, rows)


@conversion.command()
@config_option
@click.argument("address")
def pause(config: Config, address: str) -> None:
    """Have a run end after the messages in hand; `conversion resume` or `run` goes on."""
    with _state_of(config, address) as (states, account):
        if not states.pause(account):
            message = f"no run works on {address}"
            raise WrongState(message)
    click.echo(f"{address}: pausing")


@conversion.command()
@config_option
@click.argument("address")
def resume(config: Config, address: str) -> None:
    """Let the background service go on with a run that was paused."""
    with _state_of(config, address) as (states, account):
        row = states.get(account)
        if row is not None and row.direction != Direction.ENCRYPT:
            message = f"this needs a secret: conversion run --to {row.direction} {address}"
            raise WrongState(message)
        if not states.resume(account):
            message = f"no run of {address} is paused"
            raise WrongState(message)
    click.echo(f"{address}: goes on in the background")


@contextlib.contextmanager
def _state_of(config: Config, address: str) -> Iterator[tuple[States, str]]:
    shown = ask(config, AccountShow(address)).fields
    states = States(config.conversion.state)
    try:
        if not states.store.path.exists():
            message = "no run was ever made here"
            raise WrongState(message)
        yield states, shown["account"]
    finally:
        states.close()
