"""`account key`: an account's own OpenPGP or S/MIME certificates."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lmtp_atrest.cli.asking import ask, print_changed
from lmtp_atrest.cli.terminal import config_option, json_option, print_json, when
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import UsageError
from lmtp_atrest.mime import FILE_LIMIT, Certificate, check_bounds, read_file
from lmtp_atrest.unlock.requests import AccountKey, AccountShow

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@config_option
@click.argument("address")
@click.option(
    "--openpgp", multiple=True, type=FILE, metavar="FILE", help="OpenPGP certificates; repeatable."
)
@click.option(
    "--smime", multiple=True, type=FILE, metavar="FILE", help="S/MIME certificates; repeatable."
)
@click.option("--remove", is_flag=True, help="Encrypt to no certificates any more.")
@json_option
def key(
    config: Config,
    address: str,
    openpgp: Sequence[Path],
    smime: Sequence[Path],
    remove: bool,
    as_json: bool,
) -> None:
    """Encrypt new mail to certificates of the account's owner, or show them.

    The files together are what counts from now on: certificates that are in none of them no longer
    do. The private keys stay with the owner, and nothing here opens this mail. Mail that is
    already there stays as it is.
    """
    if sum(map(bool, (openpgp, smime, remove))) > 1:
        message = "give --openpgp, --smime or --remove: an account is of one kind"
        raise UsageError(message)
    if not (openpgp or smime or remove):
        _show(config, address, as_json)
        return
    request = AccountKey(address)
    if openpgp:
        request = AccountKey(address, Kind.OPENPGP, _joined(Kind.OPENPGP, openpgp))
    elif smime:
        request = AccountKey(address, Kind.SMIME, _joined(Kind.SMIME, smime))
    reply = ask(config, request)
    print_changed(reply, as_json)
    if not as_json:
        print_certificates(reply["certificates"])


def _show(config: Config, address: str, as_json: bool) -> None:
    found = ask(config, AccountShow(address)).fields
    if as_json:
        print_json(found["certificates"])
        return
    click.echo(f"{found['names'][0]}: {found['state']}, {found['kind']}")
    print_certificates(found["certificates"])


def _joined(kind: Kind, files: Iterable[Path]) -> bytes:
    """The certificates of all files in one, in the form that `account-key` takes."""
    found: list[Certificate] = []
    for path in files:
        with path.open("rb") as file:
            found += read_file(kind, file.read(FILE_LIMIT + 1), datetime.now(UTC))
    check_bounds(found)
    data = [one.data for one in found]
    return b"".join(data if kind is Kind.OPENPGP else map(_pem, data))


def _pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def print_certificates(certificates: Sequence[Mapping[str, Any]]) -> None:
    """What an administrator compares with what the owner says: fingerprint, names, dates."""
    for one in certificates:
        click.echo()
        click.echo(f"{'certificate:':<16}{one['fingerprint']}")
        for user_id in one.get("user_ids", ()):
            click.echo(f"{'':<16}{_printable(user_id)}")
        if "algorithms" in one:
            click.echo(f"{'':<16}{', '.join(one['algorithms'])}")
            expires = when(one["expires"]) if one["expires"] else "never"
            click.echo(f"{'':<16}expires: {expires}")
        if one["trouble"]:
            click.echo(f"{'':<16}not used: {one['trouble']}")


def _printable(text: str) -> str:
    """A user id with what could move a terminal's cursor taken out."""
    return "".join(character if character.isprintable() else "?" for character in text)
