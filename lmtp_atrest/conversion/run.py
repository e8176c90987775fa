"""A run over all folders of one Maildir, in batches, with a count of what was done."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from lmtp_atrest.conversion.forms import Job
from lmtp_atrest.crypto.dcrypt import HEADER_LIMIT
from lmtp_atrest.errors import AtRestError, Damaged
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.maildir.caches import CACHE_NAME
from lmtp_atrest.maildir.exchange import (
    Exchange,
    Subdirectories,
    Vanished,
    can_exchange,
    settle_all,
)
from lmtp_atrest.maildir.filesystem import StorageFailure
from lmtp_atrest.maildir.mending import QUARANTINE
from lmtp_atrest.maildir.names import base_of
from lmtp_atrest.maildir.replacement import Replacement
from lmtp_atrest.maildir.uidlist import uidlist_lock
from lmtp_atrest.telemetry import logger

# Messages that share one sync of their directories.
BATCH = 64
# Most of the time goes to syncs and to ciphers, which leave the interpreter to others.
THREADS = 4
# How long to wait for Dovecot where its list of UIDs has to be locked: longer than it keeps a lock
# that somebody forgot.
LOCK_PATIENCE = 130.0

log = logger("conversion")


@dataclass(frozen=True, slots=True)
class Failure:
    """A message that stayed as it was, and why."""

    folder: str
    name: str
    reason: str


@dataclass(slots=True)
class Counts:
    """What a run has done so far; bytes are of what was worked on, `total` is what there was when
    it began."""

    done: int = 0
    skipped: int = 0
    vanished: int = 0
    failed: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    total: int = 0

    @property
    def seen(self) -> int:
        """All messages that were looked at."""
        return self.done + self.skipped + self.vanished + self.failed


Progress = Callable[[Counts], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run may go, in messages and in bytes a second; 0 is as fast as it can."""

    messages: float = 0
    bytes: float = 0

    def seconds(self, messages: int, size: int) -> float:
        """How long so much has to take."""
        by_messages = messages / self.messages if self.messages else 0.0
        return max(by_messages, size / self.bytes if self.bytes else 0.0)


AT_ONCE = Pace()


class Stopping(Protocol):
    """What ends a run after the batch under way; a threading.Event is one."""

    def is_set(self) -> bool:
        """Whether it is to end."""

    def wait(self, timeout: float) -> bool:
        """Sleep, but not beyond the end."""


class Run:
    """One run. `stopping` ends it after the batch under way; what was done stays done.

    Without `exchange` it works as on a file system that cannot exchange two names.
    """

    def __init__(
        self,
        maildir: Maildir,
        job: Job,
        *,
        progress: Progress | None = None,
        stopping: Stopping | None = None,
        pace: Pace = AT_ONCE,
        exchange: bool = True,
        forget_caches: Callable[[str], None] = lambda _folder: None,
    ) -> None:
        self._maildir = maildir
        self._job = job
        self._progress = progress
        self._stopping: Stopping = stopping or threading.Event()
        self._pace = pace
        self._exchange = exchange
        self._forget_caches = forget_caches
        self.counts = Counts()

    def __call__(self) -> Counts:
        """Go through all folders. Raises StorageFailure where a folder cannot be worked in."""
        if self._progress is not None:
            self.counts.total = self._listed()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="conversion") as pool:
            for where in self._maildir.subdirectories():
                try:
                    self._folder(where, pool)
                finally:
                    where.close()
                if self._stopping.is_set():
                    break
        return self.counts

    def _listed(self) -> int:
        total = 0
        for where in self._maildir.subdirectories():
            try:
                total += len(_names(where))
            finally:
                where.close()
        return total

    def _folder(self, where: Subdirectories, pool: ThreadPoolExecutor) -> None:
        before, names = self.counts.done, _names(where)
        way = Exchange if self._exchange and can_exchange(where) else Replacement
        for first in range(0, len(names), BATCH):
            if self._stopping.is_set():
                return
            batch, started = names[first : first + BATCH], time.monotonic()
            size = self.counts.bytes
            self._batch([way(where, sub, name) for sub, name in batch], pool)
            due = started + self._pace.seconds(len(batch), self.counts.bytes - size)
            self._stopping.wait(max(0.0, due - time.monotonic()))
        if self.counts.done > before:
            # It holds headers and previews of messages in clear, and is made anew where allowed.
            where.forget(CACHE_NAME)
            self._forget_caches(where.folder)

    def _batch(self, exchanges: Sequence[Exchange], pool: ThreadPoolExecutor) -> None:
        try:
            sizes = dict(zip(exchanges, pool.map(self._prepared, exchanges), strict=True))
            ready = [one for one, outcome in sizes.items() if isinstance(outcome, int)]
            sizes.update(_settled(ready))
        finally:
            for one in exchanges:
                one.close()
        for one, outcome in sizes.items():
            self._count(one, outcome)
        if self._progress is not None:
            self._progress(self.counts)

    def _prepared(self, exchange: Exchange) -> int | Exception | None:
        """The size of a message that is ready to be swapped; None for one that may stay."""
        try:
            done = self._job.is_done(exchange.open().read(HEADER_LIMIT))
            size = None if done else self._job.transform(exchange)
            if size is not None:
                exchange.prepare()
        except Exception as error:
            exchange.abandon()
            return error
        if size is None:
            exchange.abandon()
        return size

    def _count(self, exchange: Exchange, outcome: int | Exception | None) -> None:
        counts = self.counts
        if outcome is None:
            counts.skipped += 1
        elif isinstance(outcome, int):
            counts.done += 1
            counts.bytes += outcome
        elif isinstance(outcome, Vanished):
            counts.vanished += 1
        elif isinstance(outcome, Damaged) and exchange.where.folder == QUARANTINE:
            counts.skipped += 1  # set aside because it does not open: no run waits for it
        else:
            # The text of an error that nobody foresaw may hold anything.
            known = isinstance(outcome, AtRestError)
            reason = str(outcome) if known else type(outcome).__name__
            log.error("message not converted", folder=exchange.where.folder, cause=reason)
            counts.failed += 1
            counts.failures.append(Failure(exchange.where.folder, exchange.name, reason))


def _settled(ready: Sequence[Exchange]) -> dict[Exchange, Exception]:
    """As `settle_all`, under the lock where that is needed; where it is not to be had, none is."""
    if not ready or not isinstance(ready[0], Replacement):
        return settle_all(ready)
    where = ready[0].where
    with ExitStack() as held:
        try:
            held.enter_context(uidlist_lock(where.directory, where.tmp, LOCK_PATIENCE))
        except StorageFailure as error:
            for one in ready:
                one.abandon()
            return dict.fromkeys(ready, error)
        return settle_all(ready)


def _names(where: Subdirectories) -> list[tuple[str, str]]:
    """Subdirectory and name of each message, listed before anything is changed.

    new/ before cur/, as messages move; one that is found in both is given once, as in cur/: two
    exchanges of one message would each take the other's copy for another message.
    """
    found: dict[str, tuple[str, str]] = {}
    for subdirectory in ("new", "cur"):
        for name in where.holding(subdirectory).names():
            if not name.startswith("."):
                found[base_of(name)] = subdirectory, name
    return list(found.values())
