"""A file system that fails at any call, and keeps book of what a power cut would leave."""

import errno
import os

from lmtp_atrest.maildir.filesystem import Filesystem


class Crash(BaseException):
    """The process is dead: no call of it works any more."""


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


class FaultyFilesystem(Filesystem):
    """Fails at call number `fail_at` with `error`; before the effect, or `after` it.

    `unsynced` holds what is not on the disk yet: (directory inode, name) and file inodes.
    """

    def __init__(
        self, fail_at: int = -1, error: BaseException | None = None, after: bool = False
    ) -> None:
        self.fail_at = fail_at
        self.error = error or OSError(errno.EIO, "injected")
        self.after = after
        self.calls: list[str] = []
        self.unsynced: set[tuple[int, str] | int] = set()
        self.renamed_unsynced = False
        self.dead = False

    def _step(self, call: str, after: bool = False) -> None:
        if self.dead:
            raise Crash
        if not after:
            self.calls.append(call)
        if after == self.after and len(self.calls) - 1 == self.fail_at:
            self.dead = isinstance(self.error, Crash)
            raise self.error

    def open(self, name: str, flags: int, dir_fd: int | None = None) -> int:
        self._step(f"open {name}")
        fd = super().open(name, flags, dir_fd)
        if flags & os.O_CREAT and dir_fd is not None:
            self.unsynced |= {inode(fd), (inode(dir_fd), name)}
        return fd

    def mkdir(self, name: str, dir_fd: int) -> None:
        self._step(f"mkdir {name}")
        super().mkdir(name, dir_fd)
        self.unsynced.add((inode(dir_fd), name))

    def write(self, fd: int, data: memoryview) -> int:
        self._step("write")
        written = super().write(fd, data[:1000])  # short writes are allowed
        self.unsynced.add(inode(fd))
        self._step("write", after=True)
        return written

    def fsync(self, fd: int) -> None:
        self._step("fsync")
        own = inode(fd)
        self.unsynced = {
            x for x in self.unsynced if x != own and not (isinstance(x, tuple) and x[0] == own)
        }
        self._step("fsync", after=True)

    def lock(self, fd: int) -> None:
        self._step("lock")
        super().lock(fd)

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        self._step("rename")
        moved = os.stat(source, dir_fd=source_fd).st_ino
        self.renamed_unsynced |= moved in self.unsynced
        super().rename(source, source_fd, target, target_fd)
        self.unsynced.add((inode(target_fd), target))
        self._step("rename", after=True)

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        self._step("link")
        super().link(source, source_fd, target, target_fd)
        self._step("link", after=True)

    def exchange(self, one: str, one_fd: int, other: str, other_fd: int) -> None:
        self._step("exchange")
        moved = os.stat(one, dir_fd=one_fd).st_ino
        self.renamed_unsynced |= moved in self.unsynced and "probe" not in one
        super().exchange(one, one_fd, other, other_fd)
        self.unsynced |= {(inode(other_fd), other)}
        self._step("exchange", after=True)

    def rename_new(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        self._step("rename")
        super().rename_new(source, source_fd, target, target_fd)
        self.unsynced.add((inode(target_fd), target))
        self._step("rename", after=True)

    def unlink(self, name: str, dir_fd: int) -> None:
        self._step("unlink")
        super().unlink(name, dir_fd)

    def rmdir(self, name: str, dir_fd: int) -> None:
        self._step("rmdir")
        super().rmdir(name, dir_fd)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._step("close")
