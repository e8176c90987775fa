"""A Maildir: opened without following links, with its folders, its pin and its stale files."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir.deliver import NewMessage
from lmtp_atrest.maildir.filesystem import (
    DIRECTORY,
    NEW_FILE,
    Filesystem,
    OpenDirectory,
    StorageFailure,
    UnsafePath,
    storage_errors,
)
from lmtp_atrest.maildir.names import (
    MAX_DEPTH,
    SUBDIRECTORIES,
    FolderStyle,
    base_of,
    flags_of,
    folder_directories,
    folder_name,
    is_own_name,
    unique_name,
)

PIN_NAME = "lmtp-atrest.pin"
PIN_LIMIT = 64 * 1024
# A file younger than this may be between its creation and its lock.
SWEEP_UNLOCKED_SECONDS = 10 * 60
# maildir(5): nobody takes longer over a delivery. The rule where locks do not work.
SWEEP_ANY_SECONDS = 36 * 3600


@dataclass(frozen=True, slots=True)
class MessageFile:
    """A message in a folder. `open` works until the walk goes on to the next folder."""

    folder: str
    subdirectory: str
    name: str
    _directory: OpenDirectory

    @property
    def flags(self) -> str:
        """The flag letters, as `RS`."""
        return flags_of(self.name)

    def open(self) -> BinaryIO:
        """Read it, following no link. Raises `NotFound` if it moved meanwhile, `UnsafePath`."""
        return _open_for_reading(self._directory, self.name, f"{self.folder}: {self.name}")


class Maildir:
    """One user's Maildir by descriptor; close it, or use `with`.

    Whoever holds it reads and writes below the directory it was opened as. Synchronous: calls
    belong in a thread. Faults are `StorageFailure` and its subclasses.
    """

    def __init__(self, directory: OpenDirectory, place: str, style: FolderStyle) -> None:
        self._directory = directory
        self._place = place
        self._style = style

    @classmethod
    def open(
        cls,
        root: Path,
        path: Path,
        *,
        create: bool,
        style: str = FolderStyle.MAILDIR_PLUS_PLUS,
        fs: Filesystem | None = None,
    ) -> "Maildir":
        """Open the Maildir `path`, which lies below the mail root.

        The root may be a symbolic link, nothing below it. `create` makes what is missing below the
        root (never the root: it may be a disk that is not mounted), durably before this returns.
        Raises `NotFound` without `create`, `UnsafePath`, `StorageFailure`.
        """
        parts = _parts_below(root, path)
        filesystem = fs or Filesystem()
        with storage_errors(f"mail root {root}"):
            fd = filesystem.open(str(root), DIRECTORY & ~os.O_NOFOLLOW)
        try:
            with storage_errors(str(path)):
                directory = _descend(OpenDirectory(filesystem, fd), parts, create=create)
                if create:
                    _make_subdirectories(directory)
        except StorageFailure as error:
            if isinstance(error.__cause__, FileNotFoundError) and not create:
                message = f"no Maildir {path}"
                raise NotFound(message) from error
            raise
        return cls(directory, str(path), FolderStyle(style))

    def close(self) -> None:
        """Give the descriptor back; messages being written keep their own."""
        self._directory.close()

    def __enter__(self) -> "Maildir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def find_folder(self, name: str) -> str | None:
        """The folder's name for people if it exists, else None, whatever a sender wrote.

        A folder exists if it has tmp/, new/ and cur/, reached without a link.
        """
        directories = folder_directories(name, self._style)
        if directories is None:
            return None
        with storage_errors(self._place):
            folder = self._open_folder(directories)
        if folder is None:
            return None
        folder.close()
        return folder_name(directories, self._style)

    def create(self, folder: str | None = None, host: str | None = None) -> NewMessage:
        """Begin a message in the folder if it exists, else, or for None, in INBOX."""
        directories = folder_directories(folder, self._style) if folder else ()
        with storage_errors(self._place):
            opened = self._open_folder(directories) if directories else None
        if opened is None:
            return NewMessage(self._directory, self._place, host)
        with opened:
            return NewMessage(opened, self._place, host)

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
        with storage_errors(self._place), self._directory.child("tmp") as tmp:
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
        for directories in self._folders(()):
            with storage_errors(self._place):
                folder = self._open_folder(directories)
            if folder is not None:
                with folder:
                    yield from self._messages(folder, folder_name(directories, self._style))

    def _messages(self, folder: OpenDirectory, shown: str) -> Iterator[MessageFile]:
        with folder.child("new") as new, folder.child("cur") as cur:
            found: dict[str, MessageFile] = {}
            for directory, subdirectory in ((new, "new"), (cur, "cur")):
                for name in directory.names():
                    if not name.startswith("."):
                        file = MessageFile(shown, subdirectory, name, directory)
                        found[base_of(name)] = file
            yield from (found[base] for base in sorted(found))

    def _folders(self, outer: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Directories that may be folders; `_open_folder` says which are."""
        yield outer
        dotted = self._style is FolderStyle.MAILDIR_PLUS_PLUS
        if len(outer) == (1 if dotted else MAX_DEPTH):
            return
        with storage_errors(self._place):
            directory = _descend_or_none(self._directory, outer)
            names = directory.names() if directory else []
            if directory:
                directory.close()
        for name in names:
            if name.startswith(".") == dotted and name not in SUBDIRECTORIES:
                yield from self._folders((*outer, name))

    def _open_folder(self, directories: tuple[str, ...]) -> OpenDirectory | None:
        folder = _descend_or_none(self._directory, directories)
        if folder is not None and not _is_folder(folder):
            folder.close()
            return None
        return folder

    def sweep_tmp(self, host: str | None = None) -> int:
        """Remove what dead processes of this host left in tmp/; says how many files.

        Only files that `unique_name` named on this host, and only if nobody holds their lock (a
        delivery does to its end, so several workers may sweep beside each other), or, where locks
        do not work, after 36 hours.
        """
        count = 0
        for directories in self._folders(()):
            with storage_errors(self._place):
                folder = self._open_folder(directories)
                if folder is not None:
                    with folder, folder.child("tmp") as tmp:
                        own = [name for name in tmp.names() if is_own_name(name, host)]
                        count += sum(_sweep(tmp, name) for name in own)
        return count


def _parts_below(root: Path, path: Path) -> tuple[str, ...]:
    if not path.is_relative_to(root) or ".." in path.parts:
        message = f"{path} does not lie below the mail root {root}"
        raise UnsafePath(message)
    return path.relative_to(root).parts


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


def _is_folder(folder: OpenDirectory) -> bool:
    for name in SUBDIRECTORIES:
        subdirectory = _descend_or_none(folder, (name,))
        if subdirectory is None:
            return False
        subdirectory.close()
    return True


def _make_subdirectories(directory: OpenDirectory) -> None:
    try:
        for opened in directory.children(SUBDIRECTORIES, create=True):
            opened.close()
    except OSError:
        directory.close()
        raise


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
