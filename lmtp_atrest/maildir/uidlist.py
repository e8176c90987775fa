"""The lock of Dovecot's list of UIDs, taken by Dovecot's own rules.

While it is held no Dovecot reads a whole folder to see what is new and what is there twice
(dovecot-uidlist.lock, a dot lock: linked from a file with `pid:host` in it).
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lmtp_atrest.maildir.filesystem import (
    NEW_FILE,
    OpenDirectory,
    StorageFailure,
    storage_errors,
)
from lmtp_atrest.maildir.names import unique_name

LOCK_NAME = "dovecot-uidlist.lock"
# Dovecot takes a lock for forgotten that did not change for so long, seen from its own clock.
STALE_SECONDS = 120.0
# One that is younger may not have its owner written in it yet.
OWNER_SECONDS = 2.0
POLL_SECONDS = 0.05


@contextmanager
def uidlist_lock(
    folder: OpenDirectory, tmp: OpenDirectory, patience: float = 10.0
) -> Iterator[None]:
    """Hold it in an open folder. Raises StorageFailure where another keeps it for `patience` s."""
    with storage_errors(LOCK_NAME):
        mine = _written(tmp, name := unique_name())
    try:
        with storage_errors(LOCK_NAME):
            _take(folder, tmp, name, patience)
        yield
    finally:
        with suppress(OSError):
            # Whoever took ours for forgotten has one of their own under this name now; ours is
            # open, so that no other file can have its number.
            if os.path.samestat(os.fstat(mine), _seen(folder)):
                folder.fs.unlink(LOCK_NAME, folder.fd)
        with suppress(OSError):
            tmp.fs.close(mine)


def _take(folder: OpenDirectory, tmp: OpenDirectory, name: str, patience: float) -> None:
    watched, until = _Watched(), time.monotonic() + patience
    try:
        while True:
            with suppress(FileExistsError):
                tmp.fs.link(name, tmp.fd, LOCK_NAME, folder.fd)
                return
            with suppress(FileNotFoundError):  # given back meanwhile
                if watched.is_forgotten(folder):
                    folder.fs.unlink(LOCK_NAME, folder.fd)
            if time.monotonic() > until:
                message = f"{LOCK_NAME} is held by another program"
                raise StorageFailure(message)
            time.sleep(POLL_SECONDS)
    finally:
        with suppress(OSError):
            tmp.fs.unlink(name, tmp.fd)


def _written(tmp: OpenDirectory, name: str) -> int:
    """A lock that says whose it is, for whoever may read the folder, before it is one."""
    fd = tmp.fs.open(name, NEW_FILE, tmp.fd)
    with suppress(OSError):  # one that nobody can read is a lock as well
        owner = os.fstat(tmp.fd)
        if owner.st_uid != os.geteuid():
            os.fchown(fd, owner.st_uid, owner.st_gid)
        tmp.fs.write(fd, memoryview(f"{os.getpid()}:{socket.gethostname()}".encode()))
    return fd


@dataclass(slots=True)
class _Watched:
    """A lock of somebody else: what it was like when it was last seen to change."""

    state: tuple[int, ...] = ()
    since: float = 0.0

    def is_forgotten(self, folder: OpenDirectory) -> bool:
        """Whether its owner is gone; without a word of the owner, whether it never changes."""
        seen, now = _seen(folder), time.monotonic()
        state = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if state != self.state:
            self.state, self.since = state, now
            return False
        if now - self.since < OWNER_SECONDS:
            return False
        owner = _local_owner(folder)
        if owner is not None:
            return not _is_alive(owner)
        return now - self.since > STALE_SECONDS


def _seen(folder: OpenDirectory) -> os.stat_result:
    return os.stat(LOCK_NAME, dir_fd=folder.fd, follow_symlinks=False)


def _local_owner(folder: OpenDirectory) -> int | None:
    """The process that wrote itself into the lock, if it is one of this host."""
    with folder.open_regular(LOCK_NAME) as file:
        pid, _, host = file.read(512).decode("utf-8", "replace").strip().partition(":")
    return int(pid) if host == socket.gethostname() and pid.isdecimal() and int(pid) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
