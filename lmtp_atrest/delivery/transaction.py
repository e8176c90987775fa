"""One message for n recipients: taken as it comes, stored once per mailbox, answered n times.

Nothing is decided twice: once the end of the message was seen, every copy is committed or undone
to its end, whoever waits for the answer or not.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.copy import StoredCopy
from lmtp_atrest.delivery.pace import Pace
from lmtp_atrest.delivery.recipients import Recipient
from lmtp_atrest.delivery.replies import Reply, reply_for
from lmtp_atrest.delivery.trouble import report
from lmtp_atrest.delivery.unclear import Entry, UnclearEnds
from lmtp_atrest.names import Address
from lmtp_atrest.telemetry import logger

log = logger("delivery")

# What is held of a message before a folder is chosen and a file begun: header rules match within
# it, and most messages fit whole, so that all the work for a copy is done at once.
HEAD_LIMIT = 64 * 1024
# As many copies as the event loop makes at once; the other sessions of the worker wait meanwhile.
FEW = 4


@dataclass(slots=True)
class _Part:
    """A copy with the recipients it serves, its own lines and what became of it."""

    copy: StoredCopy
    trace: bytes
    digest: str = ""
    entry: Entry | None = None
    reply: Reply | None = None


class Transaction:
    """See `Delivery.begin`. Used by one task, in the order write, finish or abort, confirmed or
    unclear."""

    def __init__(
        self,
        message_id: str,
        sender: Address | None,
        recipients: Sequence[Recipient],
        make_copy: Callable[[Recipient], StoredCopy],
        make_trace: Callable[[Recipient], bytes],
        unclear: UnclearEnds,
        executor: Executor,
        pace: Pace,
    ) -> None:
        self._id = message_id
        self._sender = sender
        self._unclear = unclear
        self._executor = executor
        self._pace = pace
        self._keys = [(one.mailbox, one.folder) for one in recipients]
        self._parts: dict[tuple[str, str | None], _Part] = {}
        for key, recipient in zip(self._keys, recipients, strict=True):
            if key not in self._parts:
                self._parts[key] = _Part(make_copy(recipient), make_trace(recipient))
        self._head: bytes | None = b""
        self._content = hashlib.sha256()
        self._size = 0
        self._started = time.monotonic()

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. Trouble with one copy shows in its reply, not here."""
        self._content.update(chunk)
        self._size += len(chunk)
        if self._head is None:
            await self._each(lambda part: part.copy.write(chunk))
            return
        self._head += chunk
        if len(self._head) >= HEAD_LIMIT:
            head, self._head = self._head, None
            await self._each(lambda part: part.copy.begin(part.trace, head))

    async def finish(self) -> list[Reply]:
        """Commit every copy; one reply per recipient, in order. A cancel does not cut it short."""
        for key, part in self._parts.items():
            part.digest = self._digest(key)
        parts = self._open_parts()
        if self._head is not None and self._may_wait(parts):
            self._take(parts, self._store)
        else:
            await asyncio.shield(asyncio.create_task(self._store_in_threads(parts)))
        answers = [self._parts[key].reply or replies.TEMPORARY for key in self._keys]
        self._log(answers)
        return answers

    async def _store_in_threads(self, parts: Sequence[_Part]) -> None:
        # One thread takes what is soon done; where each sync takes long, they wait side by side.
        apart = self._pace.is_slow or self._head is None
        groups = [[part] for part in parts] if apart else [parts]
        await asyncio.gather(
            *(self._in_thread(partial(self._take, group, self._store)) for group in groups)
        )

    async def abort(self) -> None:
        """Leave nothing behind of what was not committed."""
        begun = self._open_parts()
        for part in begun:
            part.reply = replies.TEMPORARY
        if any(part.copy.is_begun for part in begun):
            await self._in_thread(lambda: _abort(begun))

    def confirmed(self) -> None:
        """The client has read the replies: the same message again is a second message."""
        for entry in self._take_entries():
            entry.forget()

    def unclear(self) -> None:
        """The connection ended without that: the same message again is the client's retry."""
        for entry in self._take_entries():
            entry.leave()

    def _take_entries(self) -> list[Entry]:
        entries = [part.entry for part in self._parts.values() if part.entry is not None]
        for part in self._parts.values():
            part.entry = None
        return entries

    async def _in_thread(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _open_parts(self) -> list[_Part]:
        return [part for part in self._parts.values() if part.reply is None]

    def _may_wait(self, parts: Sequence[_Part]) -> bool:
        """Whether the event loop itself does the next step with them."""
        few = len(parts) <= FEW and not self._pace.is_slow
        return few and all(part.copy.is_at_hand for part in parts)

    async def _each(self, step: Callable[[_Part], None]) -> None:
        parts = self._open_parts()
        if self._may_wait(parts):
            self._take(parts, step)
        else:
            await self._in_thread(partial(self._take, parts, step))

    def _take(self, parts: Sequence[_Part], step: Callable[[_Part], None]) -> None:
        for part in parts:
            try:
                step(part)
            except Exception as error:
                self._failed(part, error)

    def _store(self, part: _Part) -> None:
        part.entry = self._unclear.earlier(part.digest, part.copy.became_mail)
        if part.entry is not None:
            part.copy.abort()
            part.reply = replies.STORED_BEFORE
            return
        if self._head is not None:
            part.copy.begin(part.trace, self._head)
        part.entry = self._unclear.entry(part.digest)
        part.copy.commit(part.entry)
        part.reply = replies.STORED

    def _failed(self, part: _Part, error: Exception) -> None:
        part.reply = reply_for(error)
        part.copy.abort()
        if part.entry is not None:
            part.entry.forget()
            part.entry = None
        mailbox = part.copy.recipient.mailbox
        report("delivery", "not stored", error, id=self._id, mailbox=mailbox)

    def _digest(self, key: tuple[str, str | None]) -> str:
        mailbox, folder = key
        parts = (mailbox, folder or "", str(self._sender or ""))
        return self._unclear.digest(
            *(part.encode("utf-8", "surrogateescape") for part in parts), self._content.digest()
        )

    def _log(self, answers: list[Reply]) -> None:
        stored = sum(reply.accepted for reply in answers)
        log.info(
            "delivery",
            id=self._id,
            result="stored" if stored == len(answers) else "partly" if stored else "not stored",
            recipients=len(answers),
            stored=stored,
            bytes=self._size,
            seconds=round(time.monotonic() - self._started, 4),
        )


def _abort(parts: Sequence[_Part]) -> None:
    for part in parts:
        part.copy.abort()
