"""A Maildir: opened without following links, with its folders, its pin and its stale files."""

import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir.deliver import NewMessage
from lmtp_atrest.maildir.exchange import TRIES, Subdirectories, entries_of
from lmtp_atrest.maildir.filesystem import (
    DIRECTORY,
    NEW_FILE,
    Filesystem,
    OpenDirectory,
    StorageFailure,
    UnsafePath,
    storage_errors,
)
from lmtp_atrest.maildir.layout import SUBDIRECTORIES, Directories, Layout
from lmtp_atrest.maildir.names import base_of, flags_of, is_own_name, unique_name

USUAL_LAYOUT = Layout()
PIN_NAME = "lmtp-atrest.pin"
PIN_LIMIT = 64 * 1024
# A file younger than this may be between its creation and its lock.
SWEEP_UNLOCKED_SECONDS = 10 * 60
# maildir(5): nobody takes longer over a delivery. The rule where locks do not work.
SWEEP_ANY_SECONDS = 36 * 3600


@dataclass(frozen=True, slots=True)
class MessageFile:
    """A message in a folder. `open` works until the walk goes on to the next folder.

    `place` is the path of the folder, whose name for people is `folder`. `subdirectory` and `name`
    are those under which it was listed.
    """

    folder: str
    place: str
    subdirectory: str
    name: str
    _new: OpenDirectory
    _cur: OpenDirectory

    @property
    def flags(self) -> str:
        """The flag letters, as `RS`."""
        return flags_of(self.name)

    def open(self) -> BinaryIO:
        """Read it, following no link, also under the name that a client's flags gave it since.

        Raises `NotFound` if it is no longer in this folder, `UnsafePath`.
        """
        place = f"{self.folder}: {self.name}"
        directory, name = self._new if self.subdirectory == "new" else self._cur, self.name
        for _ in range(TRIES):
            with storage_errors(place), suppress(FileNotFoundError):
                return directory.open_regular(name)
            entry = next(entries_of(base_of(self.name), self._new, self._cur), None)
            if entry is None:
                break
            directory, name = entry
        message = f"{place}: not there, or moved meanwhile"
        raise NotFound(message)


class Maildir:
    """One user's Maildir by descriptor; close it, or use `with`.

    It holds the pin and the folders; INBOX is itself, or lies elsewhere below the mail root.
    Whoever holds it reads and writes below the directories it was opened as. Synchronous: calls
    belong in a thread. Faults are `StorageFailure` and its subclasses.
    """

    def __init__(
        self,
        directory: OpenDirectory,
        inbox: OpenDirectory | None,
        layout: Layout,
        path: Path,
        inbox_path: Path,
        subdirectories: Sequence[OpenDirectory] = (),
    ) -> None:
        self._directory = directory
        self._subdirectories = subdirectories
        self._path, self._inbox_path = path, inbox_path
        self._inbox = inbox
        self._layout = layout
        self._place = str(path)

    @classmethod
    def open(
        cls,
        root: Path,
        path: Path,
        *,
        create: bool,
        inbox: Path | None = None,
        layout: Layout = USUAL_LAYOUT,
        fs: Filesystem | None = None,
    ) -> "Maildir":
        """Open the Maildir `path`, which lies below the mail root, as `inbox` does if it is given.

        The root may be a symbolic link, nothing below it. `create` makes what is missing below the
        root (never the root: it may be a disk that is not mounted), durably before this returns.
        Raises `NotFound` without `create`, `UnsafePath`, `StorageFailure`.
        """
        inbox_path = inbox or path
        filesystem = fs or Filesystem()
        with ExitStack() as undo:
            opened = undo.enter_context(_open_below(root, path, filesystem, create=create))
            found: OpenDirectory | None = opened
            if inbox_path != path:
                found = None
                with suppress(NotFound):  # there may be folders all the same, and a pin
                    found = _open_below(root, inbox_path, filesystem, create=create)
                    undo.enter_context(found)
            inner: Sequence[OpenDirectory] = ()
            if create and found is not None:
                with storage_errors(str(inbox_path)):
                    inner = found.children(SUBDIRECTORIES, create=True)
            undo.pop_all()
        return cls(opened, found, layout, path, inbox_path, inner)

    def close(self) -> None:
        """Give the descriptor back; messages being written keep their own."""
        self._directory.close()
        if self._inbox is not None:
            self._inbox.close()
        for directory in self._subdirectories:
            directory.close()

    def still_there(self) -> bool:
        """Whether the paths of INBOX still lead to the directories that `open` made durable.

        Those are held open, so no others can have their numbers. False without `create`.
        """
        held = (os.fstat(directory.fd) for directory in self._subdirectories)
        try:
            found = [os.stat(f"{self._inbox_path}/{name}") for name in SUBDIRECTORIES]  # noqa: PTH116  # faster
        except OSError:
            return False
        return bool(self._subdirectories) and all(map(os.path.samestat, held, found))

    def _inbox_below(self) -> Directories | None:
        """Where INBOX lies in the Maildir, if it does."""
        inside = self._inbox_path.is_relative_to(self._path)
        return self._inbox_path.relative_to(self._path).parts if inside else None

    def __enter__(self) -> "Maildir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def find_folder(self, name: str) -> str | None:
        """The folder's name for people if it exists, else None, whatever a sender wrote.

        A folder exists if it has tmp/, new/ and cur/, reached without a link.
        """
        with storage_errors(self._place):
            for directories in self._layout.candidates(name):
                if folder := self._open_folder(directories):
                    folder.close()
                    return self._layout.name_of(directories)
        return None

    def create(self, folder: str | None = None, host: str | None = None) -> NewMessage:
        """Begin a message in the folder if it exists, else, or for None, in INBOX."""
        with storage_errors(self._place):
            for directories in self._layout.candidates(folder) if folder else ():
                if directories and (opened := self._open_folder(directories)):
                    with opened:
                        return NewMessage(opened, self._place, host)
            return NewMessage(self._inbox_there(), self._place, host)

    def _inbox_there(self) -> OpenDirectory:
        if self._inbox is None:
            raise FileNotFoundError(errno.ENOENT, "INBOX is missing")
        return self._inbox

    def pin(self) -> bytes | None:
        """The pinned record, None if there is none. Raises `StorageFailure` if it is no pin."""
        try:
            with _open_for_reading(self._directory, PIN_NAME, self._place) as file:
                document = file.read(PIN_LIMIT + 1)
        except NotFound:
            return None
        if len(document) > PIN_LIMIT:
            message = f"{self._place}/{PIN_NAME}: larger than any pin"
            raise StorageFailure(message)
        return document

    def write_pin(self, document: bytes) -> None:
        """Replace the pin durably, in one step; the Maildir was opened with `create`.

        After `StorageFailure` either the old or the new pin stands, whole.
        """
        if len(document) > PIN_LIMIT:
            message = f"a pin of {len(document)} bytes"
            raise StorageFailure(message)
        name = unique_name()
        # INBOX is the one folder that is there for certain; swept like all its tmp/.
        with storage_errors(self._place), self._inbox_there().child("tmp") as tmp:
            try:
                self._write_file(tmp, name, document)
                tmp.fs.rename(name, tmp.fd, PIN_NAME, self._directory.fd)
            except OSError:
                with suppress(OSError):
                    tmp.fs.unlink(name, tmp.fd)
                raise
            self._directory.sync()

    @staticmethod
    def _write_file(tmp: OpenDirectory, name: str, content: bytes) -> None:
        fd = tmp.fs.open(name, NEW_FILE, tmp.fd)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[tmp.fs.write(fd, rest) :]
            tmp.fs.fsync(fd)
        finally:
            tmp.fs.close(fd)

    def walk(self) -> Iterator[MessageFile]:
        """All messages in new/ and cur/ of all folders, in the order of their names.

        new/ is listed before cur/ and a message found in both is given once, as in cur/: a client
        that reads while we walk hides no message from us.
        """
        for shown, place, folder in self._open_folders():
            with folder:
                yield from self._messages(folder, shown, place)

    def subdirectories(self) -> Iterator[Subdirectories]:
        """Every folder for whoever changes messages in place; the caller closes each."""
        for shown, _, folder in self._open_folders():
            try:
                with storage_errors(self._place):
                    inner = folder.children(("tmp", "new", "cur"), create=False)
            except BaseException:
                folder.close()
                raise
            yield Subdirectories(shown, folder, *inner)

    def make_folder(self, name: str) -> Subdirectories:
        """A folder on the first level, made durably where there is none; the caller closes it."""
        ((directory,), *_) = self._layout.candidates(name)
        with storage_errors(f"{self._place}: {name}"):
            folder = self._directory.child(directory, create=True)
            try:
                inner = folder.children(("tmp", "new", "cur"), create=True)
            except BaseException:
                folder.close()
                raise
        return Subdirectories(name, folder, *inner)

    def _messages(self, folder: OpenDirectory, shown: str, place: str) -> Iterator[MessageFile]:
        with folder.child("new") as new, folder.child("cur") as cur:
            found: dict[str, MessageFile] = {}
            for directory, subdirectory in ((new, "new"), (cur, "cur")):
                for name in directory.names():
                    if not name.startswith("."):
                        file = MessageFile(shown, place, subdirectory, name, new, cur)
                        found[base_of(name)] = file
            yield from (found[base] for base in sorted(found))

    def _open_folders(self) -> Iterator[tuple[str, str, OpenDirectory]]:
        """Every folder with its name for people and its path, INBOX first; the caller closes it.

        Where INBOX lies elsewhere, what lies in the Maildir itself is no folder of Dovecot's. It
        counts as INBOX here: somebody delivered it while the settings said something else.
        """
        inbox, itself = (self._inbox, self._inbox_path), (self._directory, self._path)
        stray = () if self._inbox is self._directory else ((*itself, ()),)
        below = ((*itself, directories) for directories in self._folders(()))
        for start, path, directories in itertools.chain(((*inbox, ()),), stray, below):
            with storage_errors(self._place):
                folder = _folder(start, directories)
            if folder is not None:
                yield self._layout.name_of(directories), str(path.joinpath(*directories)), folder

    def _folders(self, outer: Directories) -> Iterator[Directories]:
        """Directories that may be folders; `_folder` says which are."""
        if len(outer) == self._layout.depth:
            return
        with storage_errors(self._place):
            directory = _descend_or_none(self._directory, outer)
            names = directory.names() if directory else []
            if directory:
                directory.close()
        inbox = self._inbox_below()
        for name in filter(self._layout.may_be_folder, names):
            if (*outer, name) != inbox:
                yield (*outer, name)
            yield from self._folders((*outer, name))

    def _open_folder(self, directories: Directories) -> OpenDirectory | None:
        return _folder(self._directory if directories else self._inbox, directories)

    def sweep_tmp(self, host: str | None = None) -> int:
        """Remove what dead processes of this host left in tmp/; says how many files.

        Only files that `unique_name` named on this host, and only if nobody holds their lock (a
        delivery does to its end, so several workers may sweep beside each other), or, where locks
        do not work, after 36 hours.
        """
        count = 0
        for *_, folder in self._open_folders():
            with storage_errors(self._place), folder, folder.child("tmp") as tmp:
                own = [name for name in tmp.names() if is_own_name(name, host)]
                count += sum(_sweep(tmp, name) for name in own)
        return count


def _parts_below(root: Path, path: Path) -> tuple[str, ...]:
    if not path.is_relative_to(root) or ".." in path.parts:
        message = f"{path} does not lie below the mail root {root}"
        raise UnsafePath(message)
    return path.relative_to(root).parts


def _open_below(root: Path, path: Path, fs: Filesystem, *, create: bool) -> OpenDirectory:
    parts = _parts_below(root, path)
    with storage_errors(f"mail root {root}"):
        fd = fs.open(str(root), DIRECTORY & ~os.O_NOFOLLOW)
    try:
        with storage_errors(str(path)):
            return _descend(OpenDirectory(fs, fd), parts, create=create)
    except StorageFailure as error:
        if isinstance(error.__cause__, FileNotFoundError) and not create:
            message = f"no Maildir {path}"
            raise NotFound(message) from error
        raise


def _descend(start: OpenDirectory, parts: tuple[str, ...], *, create: bool) -> OpenDirectory:
    """The directory `parts` below `start`, which is closed on the way."""
    current = start
    for part in parts:
        with current:
            current = current.child(part, create=create)
    return current


def _descend_or_none(start: OpenDirectory, parts: tuple[str, ...]) -> OpenDirectory | None:
    """As `_descend`, but `start` stays open, and what is missing or a link is None."""
    try:
        copy = OpenDirectory(start.fs, start.fs.open(".", DIRECTORY, start.fd))
        return _descend(copy, parts, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _folder(start: OpenDirectory | None, directories: Directories) -> OpenDirectory | None:
    """The folder below `start`, None where there is none, or one without its subdirectories."""
    folder = start and _descend_or_none(start, directories)
    if folder is not None and not _is_folder(folder):
        folder.close()
        return None
    return folder


def _is_folder(folder: OpenDirectory) -> bool:
    for name in SUBDIRECTORIES:
        subdirectory = _descend_or_none(folder, (name,))
        if subdirectory is None:
            return False
        subdirectory.close()
    return True


def _open_for_reading(directory: OpenDirectory, name: str, place: str) -> BinaryIO:
    with storage_errors(place):
        try:
            return directory.open_regular(name)
        except FileNotFoundError as error:
            message = f"{place}: not there, or moved meanwhile"
            raise NotFound(message) from error


def _sweep(tmp: OpenDirectory, name: str) -> bool:
    try:
        with tmp.open_regular(name) as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if not _is_abandoned(file, age):
                return False
            tmp.fs.unlink(name, tmp.fd)
    except OSError:  # moved to new/ or swept by a neighbour meanwhile, or not a file
        return False
    return True


def _is_abandoned(file: BinaryIO, age: float) -> bool:
    if age < SWEEP_UNLOCKED_SECONDS:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age > SWEEP_ANY_SECONDS
    return True
