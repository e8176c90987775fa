"""Proof that every message of a mailbox opens, or the list of those that do not."""

import os
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt import HEADER_LIMIT, Header, Unwrap, is_sealed, parse_header
from lmtp_atrest.crypto.dcrypt_header import ChangedMeanwhile
from lmtp_atrest.errors import Damaged, NotFound
from lmtp_atrest.maildir import Maildir, MessageFile, StorageFailure
from lmtp_atrest.maildir.mending import QUARANTINE

SIZE_WORDS = re.compile(r",([SW])=(\d+)(?=[,:]|$)")


class Kind(StrEnum):
    """What is wrong: only `damaged` says that the file itself can never be opened again."""

    DAMAGED = "damaged"
    MISSING_KEY = "missing-key"
    SIZES = "sizes"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a message; `key_id` where the key it is sealed to is missing, `sizes`
    (S and W, measured) where those in its name are wrong."""

    folder: str
    subdirectory: str
    name: str
    kind: Kind
    reason: str
    key_id: str = ""
    sizes: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        """Where the message lies, for people."""
        return f"{self.folder}/{self.subdirectory}/{self.name}"


@dataclass(slots=True)
class Report:
    """What was found: numbers of messages, faults, and how many each missing key leaves closed.

    `quarantined` are those that were set aside and still do not open; they are no faults again.
    """

    sealed: int = 0
    plain: int = 0
    quarantined: int = 0
    faults: list[Fault] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether every message opens and says its own sizes."""
        return not self.faults


def verify(
    maildir: Maildir,
    unwrap: Unwrap | None,
    known_keys: Container[str] | None = None,
    progress: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Open every message: tag, sizes in the name, key. Raises what `unwrap` raises for itself.

    Without `unwrap` headers and sizes only, and whether the key is one of `known_keys`.
    """
    report = Report()
    for file in maildir.walk():
        progress(report)
        try:
            look(file, unwrap, report, known_keys)
        except NotFound:
            continue  # moved to another folder, or removed
    return report


def look(
    file: MessageFile,
    unwrap: Unwrap | None,
    report: Report,
    known_keys: Container[str] | None = None,
) -> None:
    """Add one message to the report. Raises NotFound if it moved meanwhile."""
    first = b""
    try:
        with file.open() as opened:
            size = os.fstat(opened.fileno()).st_size
            first = opened.read(HEADER_LIMIT)
            opened.seek(0)
            if not is_sealed(first):
                report.plain += 1
                return
            report.sealed += 1
            header = parse_header(first)
            if unwrap is None:
                faults = _by_header(file, header, size, known_keys)
            else:
                measured = _measured(dcrypt.open_file(opened, unwrap))
                faults = _sizes(file, *measured)
    except (dcrypt.WrongKey, ChangedMeanwhile) as error:
        faults = [_closed(file, error, first)]
    except Damaged as error:
        faults = [_fault(file, Kind.DAMAGED, str(error))]
    except StorageFailure as error:
        faults = [_fault(file, Kind.UNREADABLE, str(error))]
    for fault in faults:
        _add(report, fault)


def _add(report: Report, fault: Fault) -> None:
    closed = fault.kind in (Kind.DAMAGED, Kind.MISSING_KEY)
    if fault.key_id:
        report.missing[fault.key_id] = report.missing.get(fault.key_id, 0) + 1
    if closed and fault.folder == QUARANTINE:
        report.quarantined += 1
    else:
        report.faults.append(fault)


def _closed(file: MessageFile, error: Damaged, first: bytes) -> Fault:
    if isinstance(error, ChangedMeanwhile):
        return _fault(file, Kind.UNREADABLE, "changed while it was read: look again")
    key_id = parse_header(first).key_id.hex()
    return _fault(file, Kind.MISSING_KEY, "sealed to a key that is not here", key_id)


def _by_header(
    file: MessageFile, header: Header, size: int, known_keys: Container[str] | None
) -> list[Fault]:
    key_id = header.key_id.hex()
    if known_keys is not None and key_id not in known_keys:
        return [_fault(file, Kind.MISSING_KEY, "sealed to a key that is not here", key_id)]
    length = size - header.length - dcrypt.TAG_SIZE
    if length < 0:
        return [_fault(file, Kind.DAMAGED, "cut short")]
    said = _said(file)
    if said.get("S", length) != length:
        reason = f"S={said['S']} in the name, but {length} bytes"
        return [_fault(file, Kind.SIZES, reason)]
    return []


def _sizes(file: MessageFile, length: int, bare: int) -> list[Fault]:
    said, sizes = _said(file), {"S": length, "W": length + bare}
    wrong = [word for word in said if said[word] != sizes[word]]
    if not wrong:
        return []
    reason = " and ".join(f"{w}={said[w]} in the name, but {sizes[w]} bytes" for w in wrong)
    return [_fault(file, Kind.SIZES, reason, sizes=(length, length + bare))]


def _said(file: MessageFile) -> dict[str, int]:
    return {word: int(number) for word, number in SIZE_WORDS.findall(file.name)}


def _measured(chunks: Iterator[bytes]) -> tuple[int, int]:
    """Bytes of the plaintext, and how many of its line ends are a bare LF."""
    size, bare, last = 0, 0, b""
    for chunk in chunks:
        joined = last + chunk
        bare += chunk.count(b"\n") - joined.count(b"\r\n")
        size += len(chunk)
        last = chunk[-1:] if chunk[-1:] == b"\r" else b""
    return size, bare


def _fault(
    file: MessageFile,
    kind: Kind,
    reason: str,
    key_id: str = "",
    sizes: tuple[int, int] | None = None,
) -> Fault:
    return Fault(file.folder, file.subdirectory, file.name, kind, reason, key_id, sizes)
