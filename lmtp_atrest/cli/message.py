"""Work on single message files, offline: inspect, open, seal."""

import sys
from pathlib import Path
from typing import IO, BinaryIO

import click

from lmtp_atrest.cli.terminal import json_option, password_option, print_json, read_secret
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt_header import HEADER_LIMIT, is_sealed, parse_header
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.errors import UsageError, WrongSecret

CHUNK = 1 << 16
FILE = click.File("rb")
TAG_BYTES = 16


@click.group()
def message() -> None:
    """Inspect, open or seal one message file, without any service."""


@message.command()
@click.argument("file", type=FILE)
@json_option
def inspect(file: BinaryIO, as_json: bool) -> None:
    """Say what a message file is, as far as that can be told without a key."""
    facts = _facts(file)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' ') + ':':<16}{value}")


def _facts(file: IO[bytes]) -> dict[str, object]:
    prefix = file.read(HEADER_LIMIT)
    size = len(prefix) + sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK), b""))
    if not is_sealed(prefix):
        return {"format": "not encrypted", "size": size}
    header = parse_header(prefix)
    return {
        "format": "dcrypt version 2, AES-256-GCM",
        "size": size,
        "header_bytes": header.length,
        "plaintext_bytes": size - header.length - TAG_BYTES,
        "key_id": header.key_id.hex(),
        "rounds": header.rounds,
    }


@message.command("open")
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, metavar="PEM")
@click.argument("file", type=FILE)
@password_option
def open_(key_file: Path, file: BinaryIO, password_fd: int | None) -> None:
    """Decrypt FILE (- for standard input) to standard output.

    Nothing is printed before the whole message has been verified. The password is asked for where
    the private key PEM has one.
    """
    key = _private_key(key_file, password_fd)

    def unwrap(header: dcrypt.Header) -> dcrypt.MessageKey:
        return dcrypt.unwrap(header, key)

    out = sys.stdout.buffer
    if file.seekable():
        out.writelines(dcrypt.open_file(file, unwrap))
    else:
        out.write(dcrypt.open_bytes(file.read(), unwrap))
    out.flush()


def _private_key(path: Path, password_fd: int | None) -> PrivateKey:
    pem = _read(path)
    if b"ENCRYPTED PRIVATE KEY" not in pem:
        return PrivateKey.from_pem(pem)
    secret = read_secret(password_fd, f"Password of {path}")
    try:
        return PrivateKey.from_pem(pem, secret)
    except WrongSecret as error:
        text = f"{path}: the password does not open this key"
        raise WrongSecret(text) from error


@message.command()
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, metavar="PEM")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1, dcrypt.MAX_ROUNDS))
@click.argument("file", type=FILE)
def seal(key_file: Path, rounds: int, file: BinaryIO) -> None:
    """Encrypt FILE (- for standard input) to the public key in PEM, to standard output."""
    sealer = dcrypt.Sealer(PublicKey.from_pem(_read(key_file)), rounds)
    out = sys.stdout.buffer
    out.write(sealer.header)
    for chunk in iter(lambda: file.read(CHUNK), b""):
        out.write(sealer.update(chunk))
    out.write(sealer.finish())
    out.flush()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        text = f"{path}: {error.strerror}"
        raise UsageError(text) from error
