"""The few calls that change a Maildir, in one place so that a test can make any of them fail.

Everything below the mail root goes by directory descriptors and follows no symbolic link: who can
write to one mailbox must not be able to lead a delivery into another, nor out of the mail root.
"""

import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from lmtp_atrest.errors import TemporaryFailure

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO planted under a message's name must not hold a reader for ever.
EXISTING_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A directory whose entries changed this lately may have been made by a neighbour that has not
# synced it yet; one more sync (0.2 ms) makes our own 250 true without a lock between processes.
# If the neighbour's sync takes longer than this, so do ours on the same disk.
RECENT_SECONDS = 10
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
# What a file system says that has no such rename.
NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
LIBC = ctypes.CDLL(None, use_errno=True)


class StorageFailure(TemporaryFailure):
    """The file system refused; whatever was begun is undone and may be tried again."""


class DiskFull(StorageFailure):
    """No space or no inodes left."""

    public = "insufficient system storage"


class OverQuota(StorageFailure):
    """The quota of the file system is used up."""

    public = "mailbox is full"


class UnsafePath(StorageFailure):
    """A symbolic link, or something else that is no directory or file of ours, is in the way."""


_BY_ERRNO: dict[int | None, type[StorageFailure]] = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: OverQuota,
    errno.ELOOP: UnsafePath,
    errno.ENOTDIR: UnsafePath,
}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an OSError into our classes; `what` names the place for the operator only."""
    try:
        yield
    except OSError as error:
        message = f"{what}: {error.strerror or error}"
        raise _BY_ERRNO.get(error.errno, StorageFailure)(message) from error


class Filesystem:
    """What the operating system does; tests put a failing one in its place."""

    def open(self, name: str, flags: int, dir_fd: int | None = None) -> int:
        """Open or create; new files have mode 0600."""
        return os.open(name, flags, 0o600, dir_fd=dir_fd)

    def mkdir(self, name: str, dir_fd: int) -> None:
        """Make a directory of mode 0700."""
        os.mkdir(name, 0o700, dir_fd=dir_fd)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of it; says how much."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Bring a file, or the entries of a directory, to the disk."""
        os.fsync(fd)

    def lock(self, fd: int) -> None:
        """Hold an exclusive lock until the descriptor is closed; raises BlockingIOError."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Move within the file system, in one step."""
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Give a file one name more; raises FileExistsError."""
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)

    def exchange(self, one: str, one_fd: int, other: str, other_fd: int) -> None:
        """Let two names change places in one step (renameat2(2)); both must be there."""
        _renameat2(one, one_fd, other, other_fd, RENAME_EXCHANGE)

    def rename_new(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """As `rename`, but never over something; raises FileExistsError, FileNotFoundError."""
        try:
            _renameat2(source, source_fd, target, target_fd, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in NO_SUCH_RENAME:
                raise
            os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
            try:
                os.unlink(source, dir_fd=source_fd)
            except FileNotFoundError:
                # Renamed or removed meanwhile: what we made would be one message more.
                os.unlink(target, dir_fd=target_fd)
                raise

    def unlink(self, name: str, dir_fd: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, name: str, dir_fd: int) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        """Give a descriptor back; on network file systems this may report a lost write."""
        os.close(fd)


def _renameat2(one: str, one_fd: int, other: str, other_fd: int, flags: int) -> None:
    if LIBC.renameat2(one_fd, os.fsencode(one), other_fd, os.fsencode(other), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def be_like(fd: int, other: os.stat_result) -> None:
    """Give a file the mode and the owner of another; raises OSError."""
    os.fchmod(fd, other.st_mode & 0o7777)
    made = os.fstat(fd)
    if (made.st_uid, made.st_gid) != (other.st_uid, other.st_gid):
        os.fchown(fd, other.st_uid, other.st_gid)


class OpenDirectory:
    """A directory by its descriptor: stays the same one whatever happens to its name.

    Methods raise OSError; their callers say where they are (`storage_errors`).
    """

    __slots__ = ("fd", "fs")

    def __init__(self, fs: Filesystem, fd: int) -> None:
        self.fs = fs
        self.fd = fd

    def child(self, name: str, *, create: bool = False) -> "OpenDirectory":
        """Open a directory in this one, never through a link; with `create`, durably make it."""
        return self.children((name,), create=create)[0]

    def children(self, names: Sequence[str], *, create: bool) -> "list[OpenDirectory]":
        """As `child`, for several with one sync. All are open afterwards, or none."""
        opened: list[OpenDirectory] = []
        made: list[str] = []
        try:
            for name in names:
                opened.append(self._open_or_make(name, made if create else None))
            if create and (made or self._changed_recently()):
                self.sync()
        except BaseException:
            for child in opened:
                child.close()
            for name in made:  # else the next delivery would take it for durable
                with suppress(OSError):
                    self.fs.rmdir(name, self.fd)
            raise
        return opened

    def _open_or_make(self, name: str, made: list[str] | None) -> "OpenDirectory":
        try:
            return OpenDirectory(self.fs, self.fs.open(name, DIRECTORY, self.fd))
        except FileNotFoundError:
            if made is None:
                raise
        with suppress(FileExistsError):  # a neighbour was faster
            self.fs.mkdir(name, self.fd)
            made.append(name)
        return OpenDirectory(self.fs, self.fs.open(name, DIRECTORY, self.fd))

    def _changed_recently(self) -> bool:
        return abs(time.time() - os.fstat(self.fd).st_ctime) < RECENT_SECONDS

    def sync(self) -> None:
        """Make the entries durable. A failure is final: the kernel reports it once."""
        self.fs.fsync(self.fd)

    def open_regular(self, name: str) -> BinaryIO:
        """Open an existing regular file for reading. Raises ENOTDIR for anything else there."""
        fd = self.fs.open(name, EXISTING_FILE, self.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self.fs.close(fd)
            raise OSError(errno.ENOTDIR, "not a regular file")
        return os.fdopen(fd, "rb")

    def names(self) -> list[str]:
        """The entries, sorted; undecodable bytes as surrogates."""
        return sorted(os.listdir(self.fd))  # noqa: PTH208  # by descriptor

    def close(self) -> None:
        """Give the descriptor back, once; a directory has nothing to lose by it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                self.fs.close(fd)

    def __enter__(self) -> "OpenDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
