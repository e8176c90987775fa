"""Proof that every message of a mailbox opens, or the list of those that do not."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt import HEADER_LIMIT, Unwrap, is_sealed, parse_header
from lmtp_atrest.errors import AtRestError, NotFound
from lmtp_atrest.maildir import Maildir, MessageFile

SIZE_WORDS = re.compile(r",([SW])=(\d+)(?=[,:]|$)")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a message; `key_id` where the key it is sealed to is missing."""

    folder: str
    name: str
    reason: str
    key_id: str = ""


@dataclass(slots=True)
class Report:
    """What was found: numbers of messages, faults, and how many each missing key leaves closed."""

    sealed: int = 0
    plain: int = 0
    faults: list[Fault] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def well(self) -> bool:
        """Whether every message opens and says its own sizes."""
        return not self.faults


def verify(maildir: Maildir, unwrap: Unwrap | None) -> Report:
    """Open every message: tag, sizes in the name, key. Without `unwrap` headers and sizes only."""
    report = Report()
    for file in maildir.walk():
        try:
            for fault in _faults(file, unwrap, report):
                report.faults.append(fault)
        except NotFound:
            continue  # moved while we walk; under its new name it comes, or has come
        except AtRestError as error:
            report.faults.append(_fault(file, str(error)))
    return report


def _faults(file: MessageFile, unwrap: Unwrap | None, report: Report) -> Iterator[Fault]:
    with file.open() as opened:
        size = os.fstat(opened.fileno()).st_size
        first = opened.read(HEADER_LIMIT)
        opened.seek(0)
        if not is_sealed(first):
            report.plain += 1
            return
        report.sealed += 1
        header = parse_header(first)
        length = size - header.length - dcrypt.TAG_SIZE
        said = {word: int(number) for word, number in SIZE_WORDS.findall(file.name)}
        if unwrap is None:
            lines = None
        else:
            try:
                length, lines = _measured(dcrypt.open_file(opened, unwrap))
            except dcrypt.WrongKey:
                key_id = header.key_id.hex()
                report.missing[key_id] += 1
                yield _fault(file, "sealed to a key that is not here", key_id)
                return
        if said.get("S", length) != length:
            yield _fault(file, f"S={said['S']} in the name, but {length} bytes")
        if lines is not None and said.get("W", length + lines) != length + lines:
            yield _fault(file, f"W={said['W']} in the name, but {length + lines} bytes")


def _measured(chunks: Iterator[bytes]) -> tuple[int, int]:
    """Bytes of the plaintext, and how many of its line ends are a bare LF."""
    size, bare, last = 0, 0, b""
    for chunk in chunks:
        joined = last + chunk
        bare += chunk.count(b"\n") - joined.count(b"\r\n")
        size += len(chunk)
        last = chunk[-1:] if chunk[-1:] == b"\r" else b""
    return size, bare


def _fault(file: MessageFile, reason: str, key_id: str = "") -> Fault:
    return Fault(file.folder, file.name, reason, key_id)
