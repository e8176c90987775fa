"""Remembers messages whose delivery ended unclearly, so that the MTA's retry is stored once.

A client that did not read our replies sends the same message again (RFC 1047). For each stored
copy there is one small file, its entry, made before the message appears and removed when the
client has shown that it read the replies. Only an unclear end makes an entry answer for a later
message: while the connection lives the entry belongs to its process, so two equal messages that
were both meant, one after the other or at once, are both stored. It becomes anybody's when the
connection ends unclearly, and when the process is dead, which the free lock of the process shows.

An entry is named `<digest>.<unique>.<state>.<owner>`; the digest is a keyed one of mailbox,
folder, sender and content. Changes are renames, so each is whole, and of two retries only one gets
the entry. The files lie in RAM (tmpfs): they outlive the process, not a power cut, and the key
with them, so nothing about a message stays.

Where the directory or its locks cannot be used, mail is delivered all the same: a duplicate harms
less than a loss.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmtp_atrest.telemetry import logger

log = logger("delivery")

KEEP_SECONDS = 24 * 3600
SWEEP_SECONDS = 3600
KEY_NAME = "key"
KEY_SIZE = 32
BEGUN = "begun"
STORED = "stored"
NOBODY = "nobody"
_ALIVE = "alive."
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Name:
    """The name of an entry's file; an empty owner is that of an entry without a file."""

    digest: str
    unique: str
    state: str
    owner: str

    def below(self, directory: str) -> str:
        # By the digest's beginning: a retry lists few names, however many ends were unclear.
        # As text: pathlib took longer than the calls, four times for every copy.
        name = f"{self.digest}.{self.unique}.{self.state}.{self.owner}"
        return f"{directory}/{self.digest[:2]}/{name}"


class Entry:
    """What is remembered of one copy: `note`, `stored`, then `forget` or `leave`. Never raises."""

    def __init__(self, directory: str, name: _Name) -> None:
        self._directory = directory
        self._name = name

    @property
    def is_stored(self) -> bool:
        """Whether the copy is known to be durable."""
        return self._name.state == STORED

    def note(self, name: str) -> None:
        """Before the rename: under which name the message will appear."""
        if not self._name.owner:
            return
        path = self._name.below(self._directory)
        try:
            fd = _open_new(path)
            try:
                os.write(fd, os.fsencode(name))
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("a retry may be stored twice", cause=str(error))

    def noted(self) -> str:
        """The name that was noted; empty if the process was killed before it could."""
        with suppress(OSError):
            return os.fsdecode(Path(self._name.below(self._directory)).read_bytes())
        return ""

    def stored(self) -> None:
        """After the rename and the sync."""
        self._become(STORED, self._name.owner)

    def leave(self) -> None:
        """The end was unclear: the next equal message is a retry."""
        self._become(self._name.state, NOBODY)

    def take(self, owner: str) -> bool:
        """Make it this process's; False where another retry was faster."""
        return self._become(self._name.state, owner)

    def forget(self) -> None:
        """The client has read the reply, or nothing was stored."""
        with suppress(OSError):
            os.unlink(self._name.below(self._directory))  # noqa: PTH108  # see _Name.below

    def _become(self, state: str, owner: str) -> bool:
        name = _Name(self._name.digest, self._name.unique, state, owner)
        old, new = self._name.below(self._directory), name.below(self._directory)
        try:
            os.rename(old, new)  # noqa: PTH104  # see _Name.below
        except OSError:  # swept, never made, or taken
            return False
        self._name = name
        return True


class UnclearEnds:
    """The entries and their key, in a directory that all workers share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = b""
        self._owner = ""
        self._lock = -1
        self._swept_at = 0.0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = _load_key(directory)
            self._owner = self._appear()
        except OSError as error:
            log.warning("retries may be stored twice", cause=str(error))

    def _appear(self) -> str:
        """Hold a lock that ends with this process, whatever ends it; returns its name."""
        owner = secrets.token_hex(8)
        path = self._directory / f"{_ALIVE}{owner}"
        self._lock = os.open(path, _NEW_FILE, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            path.unlink()
            raise
        return owner

    def close(self) -> None:
        """What was neither confirmed nor left counts as left."""
        if self._lock >= 0:
            with suppress(OSError):
                (self._directory / f"{_ALIVE}{self._owner}").unlink()
            os.close(self._lock)
            self._lock = -1

    def digest(self, *parts: bytes) -> str:
        """The name of one message for one mailbox."""
        code = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            code.update(len(part).to_bytes(8, "big") + part)
        return code.hexdigest()

    def entry(self, digest: str) -> Entry:
        """An entry for a copy that is about to appear."""
        name = _Name(digest, secrets.token_hex(8), BEGUN, self._owner)
        return Entry(str(self._directory), name)

    def earlier(self, digest: str, is_there: Callable[[str], bool]) -> Entry | None:
        """The entry of an earlier try that ended unclearly and was stored; it is the caller's now.

        `is_there` tells whether a noted name became mail, for a try that was killed around the
        rename; what it raises goes through.
        """
        if not self._owner:
            return None
        if time.time() - self._swept_at > SWEEP_SECONDS:
            self.sweep()
        for entry in self._left(digest):
            if entry.take(self._owner) and _was_stored(entry, is_there):
                return entry
        return None

    def _left(self, digest: str) -> Iterator[Entry]:
        names: list[str] = []
        with suppress(OSError):
            names = os.listdir(f"{self._directory}/{digest[:2]}")  # noqa: PTH208  # names only
        for text in names:
            if text.startswith(digest) and text.count(".") == 3:
                name = _Name(*text.split("."))
                if not self._lives(name.owner):
                    yield Entry(str(self._directory), name)

    def _lives(self, owner: str) -> bool:
        """Whether this process is there. Where that cannot be told: yes, so mail is stored."""
        if owner in (self._owner, NOBODY):
            return owner != NOBODY
        try:
            fd = os.open(
                self._directory / f"{_ALIVE}{owner}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may ask at once
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def sweep(self) -> None:
        """Remove what is older than a day; MTAs' retries come within hours."""
        self._swept_at = time.time()
        with suppress(OSError):
            for path in self._directory.iterdir():
                if path.name.startswith(_ALIVE):
                    if not self._lives(path.name.removeprefix(_ALIVE)):
                        self._remove_old(path)
                elif path.name != KEY_NAME:
                    for old in path.iterdir() if path.is_dir() else (path,):
                        self._remove_old(old)

    def _remove_old(self, path: Path) -> None:
        with suppress(OSError):
            if path.lstat().st_mtime < self._swept_at - KEEP_SECONDS:
                path.unlink()


def _open_new(path: str) -> int:
    try:
        return os.open(path, _NEW_FILE, 0o600)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, _NEW_FILE, 0o600)


def _was_stored(entry: Entry, is_there: Callable[[str], bool]) -> bool:
    try:
        if not entry.is_stored:
            if not is_there(entry.noted()):
                entry.forget()
                return False
            entry.stored()
    except BaseException:
        entry.leave()
        raise
    return True


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
