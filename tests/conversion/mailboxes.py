"""A mailbox of all shapes on the disk, and what of it must never change."""

import os
from dataclasses import dataclass
from pathlib import Path

from lmtp_atrest.conversion import Direction, Job
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.maildir import Maildir

OLD, NEW = (PrivateKey.generate(Curve.PRIME256V1) for _ in range(2))
KEYS = {key.key_id: key for key in (OLD, NEW)}
FOLDERS = ("", ".Sent", ".a.b.&AOQ-", ".empty")
SHAPES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"x",
    "LF": b"Subject: a\n\nb\n",
    "CRLF": b"Subject: a\r\n\r\nb\r\n",
    "bare CR, NUL, 8 bit": bytes(range(256)) * 5,
    "no final line end": b"Subject: a\n\nb",
    "begins like our format": b"CRYPTE no, not quite\n",
    "larger than a chunk": os.urandom(300_000),
    "larger than what is held whole": os.urandom(2_500_000),
}


def unwrap(header: dcrypt.Header) -> dcrypt.MessageKey:
    key = KEYS.get(header.key_id)
    if key is None:
        raise dcrypt.WrongKey
    return dcrypt.unwrap(header, key)


def job(direction: str, key: PrivateKey = OLD) -> Job:
    return Job(Direction(direction), key.public, unwrap)


@dataclass(frozen=True)
class Seen:
    """What a client sees of a message, whatever form it has."""

    content: bytes
    mode: int
    mtime: int


def plaintext(path: Path) -> bytes:
    raw = path.read_bytes()
    return dcrypt.open_bytes(raw, unwrap) if dcrypt.is_sealed(raw) else raw


def seen(root: Path) -> dict[str, Seen]:
    """Every message by its path below the Maildir."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.parent.name in ("new", "cur"):
            stat = path.stat()
            content = plaintext(path)
            found[str(path.relative_to(root))] = Seen(content, stat.st_mode, stat.st_mtime_ns)
    return found


def forms(root: Path) -> set[str]:
    """Which forms there are: plain, or the name of the key."""
    found = set()
    for path in root.rglob("*"):
        if path.is_file() and path.parent.name in ("new", "cur"):
            raw = path.read_bytes()
            if not dcrypt.is_sealed(raw):
                found.add("plain" if raw else "empty")
            else:
                key_id = dcrypt.parse_header(raw[: dcrypt.HEADER_LIMIT]).key_id
                found.add("old" if key_id == OLD.key_id else "new")
    return found


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.parent.name == "tmp"]


def fill(root: Path, copies: int = 1) -> Path:
    """A Maildir with each shape in each folder, in new/ and in cur/ with flags."""
    maildir = root / "alice"
    number = 0
    for folder in FOLDERS:
        for name in ("tmp", "new", "cur"):
            (maildir / folder / name).mkdir(parents=True)
        (maildir / folder / "dovecot.index.cache").write_text("headers in clear")
        if folder == ".empty":
            continue
        for content in list(SHAPES.values()) * copies:
            number += 1
            crlf = len(content) + content.count(b"\n") - content.count(b"\r\n")
            base = f"1795{number:06}.M1P1.host,S={len(content)},W={crlf}"
            place = "new" if number % 3 == 0 else f"cur/{base}:2,{'RS' if number % 2 else ''}"
            path = maildir / folder / (f"new/{base}" if place == "new" else place)
            path.write_bytes(content)
            path.chmod(0o640 if number % 2 else 0o600)
            os.utime(path, ns=(10**18 + number, 10**18 + number * 1000 + 7))
    return maildir


def opened(root: Path, maildir: Path) -> Maildir:
    return Maildir.open(root, maildir, create=False)
