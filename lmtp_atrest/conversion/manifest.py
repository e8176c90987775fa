"""Backup manifests: what lay there at a time, to prove a copy or a restore without any secret.

Lines of text. The first is a title, the last four are a document that the site signed over the
SHA-256 of all lines before it: a manifest that was cut short or edited is refused. In between, in
canonical JSON, one object a line:

    {"site":"…"}                                       then the site's own rows
    {"account":"…","names":["…"]}                      then its rows, then its folders
    {"row":"slots/…","sha256":"…"}                     a row of the key store
    {"folder":"alice@example.org/Maildir/.Sent"}       below the mail root; then its files
    {"file":"1795….host,S=280,W=289","sha256":"…","size":571}

Files are named without their flags, which a user changes; in the order of their names, so that
neither writing nor comparing holds more than one folder's names.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lmtp_atrest.crypto.records import BadDocument, ManifestSeal, SitePublic, canonical
from lmtp_atrest.errors import AtRestError, NotFound
from lmtp_atrest.maildir import Maildir, MessageFile
from lmtp_atrest.maildir.names import base_of

TITLE = b"lmtp-atrest backup manifest 1\n"
SEAL_LINES = 4
LINE_LIMIT = 1 << 20
CHUNK = 256 * 1024

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Entry:
    """A message file as a manifest names it."""

    base: str
    sha256: str
    size: int


def entry_of(file: MessageFile) -> Entry:
    """Read a file and digest it. Raises NotFound if it moved meanwhile, StorageFailure."""
    digest, size = hashlib.sha256(), 0
    with file.open() as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Entry(base_of(file.name), digest.hexdigest(), size)


class ManifestWriter:
    """Writes the lines; `seal` is what makes them count."""

    def __init__(self, file: BinaryIO, site_id: str) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.lines = 0
        self._write(TITLE)
        self._put({"site": site_id})

    @property
    def digest(self) -> str:
        """The SHA-256 of all lines so far, in hex."""
        return self._digest.hexdigest()

    def account(self, account_id: str, names: list[str]) -> None:
        """What follows is of this account."""
        self._put({"account": account_id, "names": names})

    def rows(self, rows: Mapping[str, str]) -> None:
        """Rows of the account, or, before the first, of the site."""
        for name in sorted(rows):
            self._put({"row": name, "sha256": rows[name]})

    def folder(self, place: str) -> None:
        """What follows lies in this folder."""
        self._put({"folder": place})

    def entry(self, entry: Entry) -> None:
        """A message file."""
        self._put({"file": entry.base, "sha256": entry.sha256, "size": entry.size})

    def seal(self, document: bytes) -> None:
        """The signed end."""
        self._file.write(document)

    def _put(self, value: Mapping[str, Any]) -> None:
        self._write(canonical(value).encode("ascii") + b"\n")

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._digest.update(line)
        self.lines += 1


@dataclass(slots=True)
class _Folder:
    """Where a folder's lines begin in the manifest, and the digest that they must have."""

    offset: int
    digest: Any = field(default_factory=hashlib.sha256)
    lines: int = 0


@dataclass(slots=True)
class Account:
    """What a manifest says of one account; its files are read by `entries`."""

    account_id: str
    names: list[str] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)


class Manifest:
    """A manifest whose seal was checked. The file stays open, and is the caller's to close."""

    def __init__(self, file: BinaryIO, site: SitePublic) -> None:
        """Read it to its end. BadDocument where it is cut short, edited, or of another site."""
        self._file = file
        digest, count, document = hashlib.sha256(), 0, b""
        for line, end in _lines(file):
            if end:
                document += line
                continue
            if not count and line != TITLE:
                break
            digest.update(line)
            count += 1
        self.seal: ManifestSeal = site.verify_manifest(document)
        if (self.seal.lines, self.seal.digest) != (count, digest.digest()):
            raise _altered()

    def parts(self) -> Iterator[Account]:
        """The site's own rows, as an account without an id, then account by account.

        BadDocument at the end where the file changed since it was checked.
        """
        digest, part, folder, offset = hashlib.sha256(), Account(""), None, 0
        for line, end in _lines(self._file):
            if end:
                break
            digest.update(line)
            offset += len(line)
            value: dict[str, Any] = {} if line == TITLE else json.loads(line)
            if "account" in value:
                yield part
                part, folder = Account(value["account"], value["names"]), None
            elif "row" in value:
                part.rows[value["row"]] = value["sha256"]
            elif "folder" in value:
                folder = part.folders.setdefault(value["folder"], _Folder(offset))
            elif "file" in value and folder is not None:
                folder.digest.update(line)
                folder.lines += 1
        yield part
        if digest.digest() != self.seal.digest:
            raise _altered()

    def entries(self, folder: _Folder) -> Iterator[Entry]:
        """The files of a folder, by name. BadDocument where the file changed meanwhile."""
        digest = hashlib.sha256()
        for line in islice(_read(self._file, folder.offset), folder.lines):
            digest.update(line)
            value = json.loads(line)
            yield Entry(value["file"], value["sha256"], value["size"])
        if digest.digest() != folder.digest.digest():
            raise _altered()


@dataclass(frozen=True, slots=True)
class Difference:
    """How one thing is beside what the manifest says: `same`, `changed`, `missing`, `added`,
    `moved` or `unreadable`."""

    what: str
    path: str


def write_files(writer: ManifestWriter, maildir: Maildir, root: Path) -> Iterator[Difference]:
    """All files of a Maildir, one step each; what could not be read is `moved` or `unreadable`."""
    for place, files in groupby(maildir.walk(), key=lambda file: _place(file, root)):
        writer.folder(place)
        for file in files:
            entry = _entry_or_difference(file, place)
            if isinstance(entry, Entry):
                writer.entry(entry)
                yield Difference("same", "")
            else:
                yield entry


def differing_files(
    manifest: Manifest, account: Account, maildir: Maildir | None, root: Path
) -> Iterator[Difference]:
    """Each file of a Maildir or of the manifest, `same` where it is as it was.

    `moved` was moved by its owner in the moment it was to be read.
    """
    left = dict(account.folders)
    present = maildir.walk() if maildir is not None else iter(())
    for place, files in groupby(present, key=lambda file: _place(file, root)):
        folder = left.pop(place, None)
        entries = manifest.entries(folder) if folder is not None else iter(())
        for then, now in side_by_side(entries, files, lambda e: e.base, lambda f: base_of(f.name)):
            yield _compared(place, then, now)
    for place, folder in left.items():
        for then in manifest.entries(folder):
            yield _compared(place, then, None)


def _compared(place: str, then: Entry | None, now: MessageFile | None) -> Difference:
    if now is None:
        return Difference("missing", f"{place}/{then.base if then else ''}")
    if then is None:
        return Difference("added", f"{place}/{base_of(now.name)}")
    entry = _entry_or_difference(now, place)
    if isinstance(entry, Difference):
        return entry
    return Difference("same" if entry == then else "changed", f"{place}/{then.base}")


def _entry_or_difference(file: MessageFile, place: str) -> Entry | Difference:
    try:
        return entry_of(file)
    except NotFound:
        return Difference("moved", f"{place}/{base_of(file.name)}")
    except AtRestError as error:
        return Difference("unreadable", f"{place}/{base_of(file.name)}: {error}")


def differing_rows(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Difference]:
    """Rows of the key store that differ."""
    for name in sorted({*then, *now}):
        if name not in now:
            yield Difference("missing", name)
        elif name not in then:
            yield Difference("added", name)
        elif then[name] != now[name]:
            yield Difference("changed", name)


def side_by_side(
    then: Iterator[A], now: Iterator[B], key_then: Callable[[A], str], key_now: Callable[[B], str]
) -> Iterator[tuple[A | None, B | None]]:
    """Two sequences in the order of their keys, what has one key beside each other."""
    one, other = next(then, None), next(now, None)
    while one is not None or other is not None:
        if other is None or (one is not None and key_then(one) < key_now(other)):
            yield one, None
            one = next(then, None)
        elif one is None or key_now(other) < key_then(one):
            yield None, other
            other = next(now, None)
        else:
            yield one, other
            one, other = next(then, None), next(now, None)


def _place(file: MessageFile, root: Path) -> str:
    return str(Path(file.place).relative_to(root))


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """All lines from the beginning, and whether they belong to the seal."""
    last: deque[bytes] = deque()
    for line in _read(file, 0):
        last.append(line)
        if len(last) > SEAL_LINES:
            yield last.popleft(), False
    for line in last:
        yield line, True


def _read(file: BinaryIO, offset: int) -> Iterator[bytes]:
    """Lines from here on, wherever others read in the same file meanwhile."""
    while True:
        file.seek(offset)
        line = file.readline(LINE_LIMIT)
        if not line:
            return
        offset += len(line)
        yield line


def _altered() -> BadDocument:
    return BadDocument("the manifest is not as it was signed: cut short, or edited")
