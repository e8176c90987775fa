"""Messages held in memory until they are encrypted as a whole: never in a file, and not too many.

A message in Dovecot's format is encrypted as it comes. OpenPGP and S/MIME, as the libraries offer
them, take a message in one piece.
"""

import contextlib
import threading
from collections.abc import Iterator

from lmtp_atrest.errors import TemporaryFailure

# All messages that a process holds, at the least; one of the largest size always fits.
HELD_LIMIT = 64 * 1024 * 1024
# To encrypt takes some times the message's size in memory: larger ones are encrypted in turn.
LARGE = 1024 * 1024


class NoRoom(TemporaryFailure):
    """More messages are held than there is memory for; the MTA's next try may find room."""


class Memory:
    """What the messages held by a process may take together. For any thread."""

    def __init__(self, largest: int) -> None:
        self._limit = max(HELD_LIMIT, largest + LARGE)
        self._held = 0
        self._lock = threading.Lock()
        self._large = threading.Lock()

    def take(self, size: int) -> None:
        """Count so many bytes more; NoRoom, and nothing counted."""
        with self._lock:
            if self._held + size > self._limit:
                message = f"messages of {self._held} bytes are held for encryption already"
                raise NoRoom(message)
            self._held += size

    def give_back(self, size: int) -> None:
        """Count so many bytes less."""
        with self._lock:
            self._held -= size

    @contextlib.contextmanager
    def turn(self, size: int) -> Iterator[None]:
        """Encrypt within it: large messages wait for each other."""
        with self._large if size > LARGE else contextlib.nullcontext():
            yield


class Held:
    """One message; `close` it, whatever happens."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._chunks: list[bytes] = []
        self.size = 0

    def add(self, chunk: bytes) -> None:
        """Add bytes; NoRoom."""
        self._memory.take(len(chunk))
        self.size += len(chunk)
        self._chunks.append(chunk)

    def whole(self) -> bytes:
        """The message, which from now on is the caller's alone."""
        message = b"".join(self._chunks)
        self._chunks.clear()
        return message

    def close(self) -> None:
        """Forget it; may be called again."""
        self._chunks.clear()
        size, self.size = self.size, 0
        self._memory.give_back(size)
