"""One message of a live mailbox, exchanged in place for another form of the same message.

The new form is written to tmp/ and synced, then the two names change places in one step
(`renameat2`, RENAME_EXCHANGE). That step fails where Dovecot has renamed the message meanwhile (a
flag changed, it was moved or removed): the message is then looked for and tried again. Measured: a
plain rename onto a name that Dovecot has just changed makes a second message of it.

Name, mode, owner and mtime stay, so UID, flags, sizes and INTERNALDATE do. A crash leaves either
form under the name, whole, and the other one in tmp/.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir.filesystem import (
    Filesystem,
    OpenDirectory,
    StorageFailure,
    UnsafePath,
    be_like,
    storage_errors,
)
from lmtp_atrest.maildir.names import base_of, unique_name

NEW_COPY = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TRIES = 20  # a client would have to change the flags of one message as often in that moment
PROBE = "exchange-probe"


class Vanished(NotFound):
    """The message was moved to another folder, or removed, while it was worked on."""


def vanished(name: str) -> Vanished:
    """The error to raise for a message that is nowhere in its folder."""
    return Vanished(f"{name}: moved or removed meanwhile")


class ChangedUnderneath(Vanished):
    """Another file stands under the message's name than the one that was read."""


@dataclass(frozen=True, slots=True)
class Subdirectories:
    """The three directories of an open folder, and what people call it."""

    folder: str
    directory: OpenDirectory
    tmp: OpenDirectory
    new: OpenDirectory
    cur: OpenDirectory

    def holding(self, subdirectory: str) -> OpenDirectory:
        """new/ or cur/."""
        return self.new if subdirectory == "new" else self.cur

    def close(self) -> None:
        """Give the descriptors back."""
        for directory in (self.directory, self.tmp, self.new, self.cur):
            directory.close()

    def forget(self, name: str) -> None:
        """Remove a file of the folder itself, if it is there."""
        with storage_errors(f"{self.folder}/{name}"), suppress(FileNotFoundError):
            self.directory.fs.unlink(name, self.directory.fd)

    def places(self, base: str) -> "list[tuple[OpenDirectory, str]]":
        """Where files with this base name are now."""
        return list(entries_of(base, self.new, self.cur))


def entries_of(
    base: str, new: OpenDirectory, cur: OpenDirectory
) -> "Iterator[tuple[OpenDirectory, str]]":
    """Where a message with this base name is now; new/ first, as messages go to cur/."""
    for directory in (new, cur):
        for name in directory.names():
            if base_of(name) == base:
                yield directory, name


@dataclass(slots=True, eq=False)
class Exchange:
    """A message on its way to another form. Use: write, reread, prepare, swap, then `settle`.

    Methods raise StorageFailure, UnsafePath, Vanished; whoever is not settled calls `abandon`.
    """

    where: Subdirectories
    subdirectory: str
    name: str
    source: BinaryIO | None = None
    _before: os.stat_result | None = None
    _copy: int = -1
    _copy_name: str = ""
    _swapped: bool = False

    def open(self) -> BinaryIO:
        """The message as it is, from its beginning. Raises `Vanished` if it is nowhere there."""
        if self.source is not None:
            self.source.seek(0)
            return self.source
        place = f"{self.where.folder}: {self.name}"
        with storage_errors(place):
            for _ in range(TRIES):
                directory = self.where.holding(self.subdirectory)
                try:
                    self.source = directory.open_regular(self.name)
                except FileNotFoundError:
                    self._look_again()
                    continue
                self._before = os.fstat(self.source.fileno())
                return self.source
        raise vanished(self.name)

    def write(self, data: bytes) -> None:
        """Add bytes of the other form."""
        with storage_errors(self.name):
            if self._copy < 0:
                self._copy_name = unique_name()
                self._copy = self._fs.open(self._copy_name, NEW_COPY, self.where.tmp.fd)
                # Held until the end: the sweep of a delivery leaves locked files alone.
                with suppress(OSError):
                    self._fs.lock(self._copy)
            rest = memoryview(data)
            while rest:
                rest = rest[self._fs.write(self._copy, rest) :]

    def reread(self) -> BinaryIO:
        """What was written, from its beginning, to be checked before it counts."""
        os.lseek(self._copy, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._copy), "rb")

    def prepare(self) -> None:
        """Make the copy durable, with the mode, owner and time of the message."""
        before = self._known()
        with storage_errors(self.name):
            be_like(self._copy, before)
            os.utime(self._copy, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._fs.fsync(self._copy)

    def swap(self) -> OpenDirectory:
        """The copy takes the message's place; the directory that is to be synced."""
        with storage_errors(f"{self.where.folder}: {self.name}"):
            for _ in range(TRIES):
                directory = self.where.holding(self.subdirectory)
                try:
                    self._fs.exchange(self._copy_name, self.where.tmp.fd, self.name, directory.fd)
                except FileNotFoundError:
                    self._look_again()
                    continue
                self._swapped = True
                self._check_swapped(directory)
                return directory
        raise vanished(self.name)

    def settle(self) -> None:
        """Remove the form from before; both directories are synced."""
        with storage_errors(self.name):
            self._fs.unlink(self._copy_name, self.where.tmp.fd)
        self._copy_name = ""
        self.close()

    def abandon(self) -> None:
        """Leave the message as it is; never fails. What was swapped in stays, it is whole."""
        if self._copy_name and not self._swapped:  # else it is what was in the mailbox
            with suppress(OSError):
                self._fs.unlink(self._copy_name, self.where.tmp.fd)
            self._copy_name = ""
        self.close()

    def close(self) -> None:
        """Give the descriptors back; nothing can be done with it afterwards."""
        if self.source is not None:
            self.source.close()
        if self._copy >= 0:
            with suppress(OSError):
                self._fs.close(self._copy)
            self._copy = -1

    @property
    def _fs(self) -> Filesystem:
        return self.where.tmp.fs

    def _known(self) -> os.stat_result:
        if self._before is None:
            message = "the message was not opened"
            raise UnsafePath(message)
        return self._before

    def _look_again(self) -> None:
        place = next(entries_of(base_of(self.name), self.where.new, self.where.cur), None)
        if place is None:
            raise vanished(self.name)
        self._found_at(*place)

    def _found_at(self, directory: OpenDirectory, name: str) -> None:
        self.name = name
        self.subdirectory = "new" if directory is self.where.new else "cur"

    def _check_swapped(self, directory: OpenDirectory) -> None:
        """What came out is what was read; else put it back, for it is another message."""
        out = os.stat(self._copy_name, dir_fd=self.where.tmp.fd, follow_symlinks=False)
        if same_content(out, self._known()):
            return
        try:
            self._fs.exchange(self._copy_name, self.where.tmp.fd, self.name, directory.fd)
        except OSError:
            # Renamed in this very moment, or the disk is in trouble: our copy is in the mailbox as
            # one message more, and what we took out goes in beside it. Two are better than none.
            self._fs.rename(self._copy_name, self.where.tmp.fd, unique_name(), self.where.new.fd)
            self._copy_name = ""
        self._swapped = False
        message = f"{self.name}: another file was put under this name"
        raise ChangedUnderneath(message)


def same_content(one: os.stat_result, other: os.stat_result) -> bool:
    """The same file with the same content: writing to a message moves its time or its size."""
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )


def settle_all(exchanges: Sequence[Exchange]) -> dict[Exchange, Exception]:
    """Swap prepared exchanges of one folder, sync once, then remove what was there before.

    One sync serves all: until it is done both forms of each message are on the disk. Returns the
    trouble with single ones, which stay as they were.
    """
    trouble: dict[Exchange, Exception] = {}
    swapped: list[Exchange] = []
    touched: dict[int, OpenDirectory] = {}
    for one in exchanges:
        try:
            directory = one.swap()
        except Exception as error:
            trouble[one] = error
            one.abandon()
            continue
        touched[directory.fd] = directory
        swapped.append(one)
    if swapped:
        tmp = swapped[0].where.tmp
        for directory in (*touched.values(), tmp):
            with storage_errors(swapped[0].where.folder):
                directory.sync()
    for one in swapped:
        try:
            one.settle()
        except StorageFailure as error:  # what was there before is still in tmp/
            trouble[one] = error
            one.close()
    return trouble


def can_exchange(where: Subdirectories) -> bool:
    """Whether the file system of this folder exchanges names; tried with two empty files."""
    fs, names = where.tmp.fs, [f"{unique_name()}.{PROBE}{number}" for number in (1, 2)]
    with storage_errors(where.folder):
        try:
            for name in names:
                fs.close(fs.open(name, NEW_COPY, where.tmp.fd))
            fs.exchange(names[0], where.tmp.fd, names[1], where.tmp.fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                return False
            raise
        finally:
            for name in names:
                with suppress(OSError):
                    fs.unlink(name, where.tmp.fd)
    return True
