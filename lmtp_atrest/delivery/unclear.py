"""Remembers messages whose delivery ended unclearly, so that the MTA's retry is stored once.

A client that did not read our replies sends the same message again (RFC 1047). For each stored
copy there is one small file, named by a keyed digest of mailbox, folder, sender and content, made
before the message appears and removed when the client has shown that it read the replies; so two
equal messages that were both meant are both stored. The files lie in RAM (tmpfs): they outlive the
process, not a power cut, and the digest's key with them, so nothing about a message stays.

Where the directory cannot be used, mail is delivered all the same: a duplicate harms less.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmtp_atrest.errors import Busy
from lmtp_atrest.telemetry import logger

log = logger("delivery")

KEEP_SECONDS = 24 * 3600
SWEEP_SECONDS = 3600
KEY_NAME = "key"
KEY_SIZE = 32
_STORED = b"stored"


class Claim:
    """The right to store one message now; nobody else stores the same one meanwhile."""

    def __init__(self, fd: int = -1, path: Path | None = None) -> None:
        self._fd = fd
        self._path = path
        self.done = False

    def stored_before(self, is_there: Callable[[str], bool]) -> bool:
        """True where an earlier try stored it; `is_there` tells whether a name became mail."""
        if self._fd < 0:
            return False
        noted = os.pread(self._fd, 4096, 0)
        if not noted:
            return False
        # A name without the mark: the process was killed around the rename.
        self.done = noted == _STORED or is_there(noted.decode("utf-8", "surrogateescape"))
        return self.done

    def note(self, name: str) -> None:
        """Before the rename: under which name it will appear."""
        self._replace(name.encode("utf-8", "surrogateescape"))

    def stored(self) -> None:
        """After the rename and the sync."""
        self._replace(_STORED)
        self.done = True

    def _replace(self, content: bytes) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, content, 0)

    def release(self) -> None:
        """Give it up; a message that was not stored is forgotten."""
        if self._fd >= 0:
            if not self.done and self._path is not None:
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._fd)
            self._fd = -1


class UnclearEnds:
    """The files and their key, in a directory that all workers share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key: bytes | None = None
        self._swept_at = 0.0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = _load_key(directory)
        except OSError as error:
            log.warning("retries may be stored twice", cause=str(error))

    def digest(self, *parts: bytes) -> str:
        """The name of one message for one mailbox."""
        code = hmac.new(self._key or b"", digestmod=hashlib.sha256)
        for part in parts:
            code.update(len(part).to_bytes(8, "big") + part)
        return code.hexdigest()

    @contextmanager
    def claim(self, digest: str) -> Iterator[Claim]:
        """Hold the message's file locked. Raises Busy while another try is being stored."""
        if time.time() - self._swept_at > SWEEP_SECONDS:
            self.sweep()
        claim = self._claim(self._directory / digest)
        try:
            yield claim
        finally:
            claim.release()

    def _claim(self, path: Path) -> Claim:
        if self._key is None:
            return Claim()
        try:
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                if _locked(fd) and _is_still(fd, path):
                    return Claim(fd, path)
                os.close(fd)
        except OSError as error:
            log.warning("a retry may be stored twice", cause=str(error))
            return Claim()

    def forget(self, digest: str) -> None:
        """The client has read the reply."""
        with suppress(OSError):
            (self._directory / digest).unlink()

    def sweep(self) -> None:
        """Remove what is older than a day; MTAs' retries come within hours."""
        self._swept_at = time.time()
        old = self._swept_at - KEEP_SECONDS
        with suppress(OSError):
            for path in self._directory.iterdir():
                if path.name != KEY_NAME and path.lstat().st_mtime < old:
                    path.unlink(missing_ok=True)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        message = "the same message is being stored at this moment"
        raise Busy(message) from error
    return True


def _is_still(fd: int, path: Path) -> bool:
    """Whether the locked file is the one under this name; its last holder may have removed it."""
    try:
        return path.lstat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _load_key(directory: Path) -> bytes:
    path = directory / KEY_NAME
    with suppress(FileExistsError):
        made = directory / f"{KEY_NAME}.{secrets.token_hex(8)}"
        made.touch(mode=0o600)
        try:
            made.write_bytes(secrets.token_bytes(KEY_SIZE))
            os.link(made, path)  # in one step: a neighbour never reads half a key
        finally:
            made.unlink()
    key = path.read_bytes()
    if len(key) != KEY_SIZE:
        message = f"{path} is not a key of {KEY_SIZE} bytes; remove it"
        raise OSError(message)
    return key
