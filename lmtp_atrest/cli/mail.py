"""Reading an account's mail with its password, without an IMAP server: list, show, export.

The vault is opened over the socket and message keys come by `unwrap`: no private key enters this
process. What is printed was verified to its last byte first.
"""

import mailbox as stdlib_mailbox
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email import policy
from email.headerregistry import DateHeader
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import click

from lmtp_atrest.cli import mailcheck
from lmtp_atrest.cli.terminal import (
    config_option,
    json_option,
    note,
    password_option,
    print_json,
    print_table,
    read_secret,
)
from lmtp_atrest.config import Config
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt_header import is_sealed
from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import AtRestError, Damaged, NotFound, UsageError, WrongState
from lmtp_atrest.maildir import Layout, Maildir, MessageFile
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import SocketUnwrap, SyncClient
from lmtp_atrest.unlock.requests import AccountShow, Open, Role

MAGIC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An account whose vault is open: where its Maildir lies, and the token of the session."""

    address: str
    maildir: Path
    inbox: Path
    token: str


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a mailbox, read and verified."""

    folder: str
    subdirectory: str
    name: str
    flags: str
    sealed: bool
    content: bytes


def open_mailbox(config: Config, client: SyncClient, address: str, secret: Secret) -> Mailbox:
    """Open the account's vault; WrongSecret, NotFound, WrongState for a plain account."""
    shown = client.ask(AccountShow(address))
    reply = client.ask(Open(address, secret, "cli"))
    if reply.result != "opened":
        message = f"{address} is not encrypted: its mail can be read as it is"
        if shown["kind"] != Kind.MAIL_CRYPT:
            message = f"{address} encrypts to certificates of its owner: nothing here opens that"
        raise WrongState(message)
    inbox = config.mail.inbox_of(shown["home"], shown["maildir"])
    return Mailbox(address, Path(shown["maildir"]), Path(inbox), str(reply["token"]))


def read_mailbox(config: Config, client: SyncClient, mailbox: Mailbox) -> Iterator[StoredMessage]:
    """All messages, verified; Damaged for the first that does not open."""
    for file, message in _messages(config, client, mailbox):
        if isinstance(message, AtRestError):
            text = f"{file.folder}/{file.subdirectory}/{file.name}: {message}"
            raise Damaged(text) from message
        yield message


def _messages(
    config: Config, client: SyncClient, mailbox: Mailbox
) -> Iterator[tuple[MessageFile, StoredMessage | AtRestError]]:
    unwrap = SocketUnwrap(client, mailbox.token)
    with _maildir(config, mailbox) as maildir:
        for file in maildir.walk():
            try:
                yield file, _read(file, unwrap)
            except NotFound:
                continue  # moved or removed by its owner meanwhile
            except Damaged as error:
                yield file, error


def _read(file: MessageFile, unwrap: dcrypt.Unwrap) -> StoredMessage:
    with file.open() as opened:
        sealed = is_sealed(opened.read(MAGIC_BYTES))
        opened.seek(0)
        content = b"".join(dcrypt.open_file(opened, unwrap)) if sealed else opened.read()
    return StoredMessage(file.folder, file.subdirectory, file.name, file.flags, sealed, content)


@click.group()
def mail() -> None:
    """Read an account's mail with its password, without an IMAP server."""


@mail.command("list")
@config_option
@click.argument("address")
@password_option
@json_option
def list_(config: Config, address: str, password_fd: int | None, as_json: bool) -> None:
    """List all messages: number, folder, size, date, sender, subject."""
    listed = []
    for number, message in _numbered(config, address, password_fd):
        headers = _headers(message.content)
        listed.append(
            {
                "number": number,
                "folder": message.folder,
                "size": len(message.content),
                "sealed": message.sealed,
                "flags": message.flags,
                "date": _date(headers),
                "from": str(headers["from"] or ""),
                "subject": str(headers["subject"] or ""),
            }
        )
    if as_json:
        print_json(listed)
        return
    heads = ["number", "folder", "size", "date", "from", "subject"]
    print_table(["NO", *(h.upper() for h in heads[1:])], [[m[h] for h in heads] for m in listed])


@mail.command()
@config_option
@click.argument("address")
@click.argument("number", type=click.IntRange(1))
@password_option
def show(config: Config, address: str, number: int, password_fd: int | None) -> None:
    """Print one message, by its number in `mail list`."""
    for found, message in _numbered(config, address, password_fd):
        if found == number:
            sys.stdout.buffer.write(message.content)
            sys.stdout.buffer.flush()
            return
    text = f"{address} has no message {number}"
    raise NotFound(text)


@mail.command()
@config_option
@click.argument("address")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["maildir", "mbox"]), default="maildir")
@password_option
@json_option
def export(
    config: Config, address: str, target: Path, form: str, password_fd: int | None, as_json: bool
) -> None:
    """Write all messages, decrypted, to a new Maildir or mbox.

    This leaves plaintext on disk: it is for users who take their mail elsewhere.
    """
    if target.exists():
        text = f"{target} exists: nothing is overwritten"
        raise UsageError(text)
    exporter = _Mbox(target) if form == "mbox" else _MaildirCopy(target)
    faults, count = [], 0
    with _connected(config) as client:
        mailbox = _opened(config, client, address, password_fd)
        for file, message in _messages(config, client, mailbox):
            if isinstance(message, AtRestError):
                faults.append(f"{file.folder}/{file.subdirectory}/{file.name}: {message}")
                continue
            exporter.add(message)
            count += 1
    exporter.close()
    if as_json:
        print_json({"exported": count, "faults": faults})
    else:
        click.echo(f"{count} messages written to {target}")
    if faults:
        raise Damaged("\n".join([f"{len(faults)} messages did not open", *faults]))


for _command in (mailcheck.verify_, mailcheck.repair, mailcheck.quarantine):
    mail.add_command(_command)


def _maildir(config: Config, mailbox: Mailbox) -> Maildir:
    return Maildir.open(
        config.mail.root,
        mailbox.maildir,
        create=False,
        inbox=mailbox.inbox,
        layout=Layout.of(config.lmtp),
    )


def _connected(config: Config) -> SyncClient:
    return SyncClient(config.unlock.sockets / "admin.sock", Role.ADMIN)


def _opened(config: Config, client: SyncClient, address: str, password_fd: int | None) -> Mailbox:
    secret = read_secret(password_fd, f"The password of {address}")
    return open_mailbox(config, client, address, secret)


def _numbered(
    config: Config, address: str, password_fd: int | None
) -> Iterator[tuple[int, StoredMessage]]:
    """Messages from 1 on; what does not open is told, numbered too, and left out."""
    with _connected(config) as client:
        mailbox = _opened(config, client, address, password_fd)
        for number, (file, message) in enumerate(_messages(config, client, mailbox), 1):
            if isinstance(message, AtRestError):
                note(f"message {number} ({file.folder}/{file.name}): {message}")
            else:
                yield number, message


def _headers(content: bytes) -> EmailMessage:
    # For the eyes of whoever typed the password; delivery never parses a message.
    head = content[: content.find(b"\n\n") + 1] or content[:65536]
    return BytesHeaderParser(policy=policy.default).parsebytes(head)


def _date(headers: EmailMessage) -> str:
    header: Any = headers["date"]
    if not isinstance(header, DateHeader) or header.datetime is None:
        return ""
    return header.datetime.strftime("%Y-%m-%d %H:%M")


class _Mbox:
    """One mbox file, closed to others."""

    def __init__(self, target: Path) -> None:
        # Not made by the library, which would leave it open to others.
        target.touch(mode=0o600, exist_ok=False)
        self._box = stdlib_mailbox.mbox(target, create=False)

    def add(self, message: StoredMessage) -> None:
        self._box.add(message.content)

    def close(self) -> None:
        self._box.close()


class _MaildirCopy:
    """A Maildir with the same folders, names and flags, closed to others."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._make(target)

    def add(self, message: StoredMessage) -> None:
        # A name that no folder can have, whoever made that directory, goes to INBOX.
        candidates = Layout().candidates(message.folder)
        folder = self._target.joinpath(*(candidates[0] if candidates else ()))
        self._make(folder)
        path = folder / message.subdirectory / message.name
        with path.open("xb") as file:
            file.write(message.content)

    def close(self) -> None:
        """Every file is closed already."""

    def _make(self, folder: Path) -> None:
        for part in ("tmp", "new", "cur"):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
