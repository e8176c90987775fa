"""Backup manifests, which later prove without a secret that mail and keys are what they were."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

from lmtp_atrest import users
from lmtp_atrest.cli.progress import KeptOpen, Ticker
from lmtp_atrest.cli.terminal import config_option, json_option, note, print_json
from lmtp_atrest.config import Config
from lmtp_atrest.conversion import Place
from lmtp_atrest.conversion.manifest import ManifestWriter, write_files
from lmtp_atrest.crypto.records import SitePublic
from lmtp_atrest.errors import Damaged, NotFound, UsageError
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import BackupRows, BackupSeal, Role


def pages(client: SyncClient, address: str | None) -> Iterator[Reply]:
    """The rows of one account, or of all of them and the site, page by page."""
    if address is not None:
        yield client.ask(BackupRows(address))
        return
    after = ""
    while True:
        reply = client.ask(BackupRows(after=after))
        yield reply
        after = str(reply["next"])
        if not after:
            return


def mailbox_of(config: Config, account: dict[str, Any]) -> Place | None:
    """Where an account's mail lies; None of a removed one, whose Maildir may be another's."""
    if account["state"] == "removed":
        return None
    return Place.of(config, account["account"], account["home"], account["maildir"], 0)


@click.group()
def backup() -> None:
    """Prove later what mail and keys were at the time of a backup."""


@backup.command()
@config_option
@click.argument("address", required=False)
@click.option("--all", "everybody", is_flag=True, help="All accounts, and the site's own keys.")
@click.option(
    "--output",
    "-o",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="A new file to write to.",
)
@json_option
def manifest(
    config: Config, address: str | None, everybody: bool, path: Path, as_json: bool
) -> None:
    """List the SHA-256 of each message file and key store row, signed by the site's key.

    `mail verify --manifest` compares with it. Conversion and new keys change what it lists: make
    another one after them.
    """
    if (address is None) != everybody:
        message = "give an address, or --all"
        raise UsageError(message)
    site_id = SitePublic.load(config.site.public).site_id
    admin = config.unlock.sockets / "admin.sock"
    with SyncClient(admin, Role.ADMIN) as client, _new_file(path) as file:
        # From here on as the owner of the Maildirs; file and socket are open already.
        users.become(config.lmtp.user)
        counts, faults = _write(config, client, ManifestWriter(file, site_id), address)
        file.flush()
        os.fsync(file.fileno())
    if as_json:
        print_json({**counts, "faults": faults})
    else:
        click.echo(
            f"{counts['accounts']} accounts, {counts['files']} files, {counts['rows']} rows"
        )
    if counts["moved"]:
        note(f"{counts['moved']} files were moved while they were read, and are not in it")
    if faults:
        raise Damaged("\n".join([f"{len(faults)} files could not be read", *faults]))


def _new_file(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise UsageError(message) from error
    return os.fdopen(descriptor, "wb")


def _write(
    config: Config, client: SyncClient, writer: ManifestWriter, address: str | None
) -> tuple[dict[str, int], list[str]]:
    counts: Counter[str] = Counter(accounts=0, files=0, rows=0, moved=0)
    faults: list[str] = []
    ticker, keep_open = Ticker(), KeptOpen(client)
    for number, page in enumerate(pages(client, address)):
        if not number:
            writer.rows(page["site"])
            counts["rows"] += len(page["site"])
        for account in page["accounts"]:
            writer.account(account["account"], account["names"])
            writer.rows(account["rows"])
            counts.update(accounts=1, rows=len(account["rows"]))
            for found in _files(config, writer, account):
                counts["files" if found.what == "same" else found.what] += 1
                if found.what == "unreadable":
                    faults.append(found.path)
                ticker(f"{counts['files']} files")
                keep_open()
    document = client.ask(BackupSeal(str(writer.lines), writer.digest))["document"]
    writer.seal(str(document).encode("ascii"))
    return dict(counts), faults


def _files(config: Config, writer: ManifestWriter, account: dict[str, Any]) -> Iterator[Any]:
    place = mailbox_of(config, account)
    if place is None:
        return
    with suppress(NotFound), place.open() as maildir:  # none before its first message
        yield from write_files(writer, maildir, place.root)
