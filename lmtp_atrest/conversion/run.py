"""A run over all folders of one Maildir, in batches, with a count of what was done."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lmtp_atrest.conversion.forms import Job
from lmtp_atrest.crypto.dcrypt import HEADER_LIMIT
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.maildir.exchange import (
    Exchange,
    Subdirectories,
    Vanished,
    can_exchange,
    settle_all,
)
from lmtp_atrest.maildir.filesystem import StorageFailure
from lmtp_atrest.maildir.names import base_of
from lmtp_atrest.telemetry import logger

# Messages that share one sync of their directories.
BATCH = 64
# Most of the time goes to syncs and to ciphers, which leave the interpreter to others.
THREADS = 4
CACHE_NAME = "dovecot.index.cache"

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


class Run:
    """One run. `stopping` ends it after the batch under way; what was done stays done."""

    def __init__(
        self,
        maildir: Maildir,
        job: Job,
        *,
        progress: Progress | None = None,
        stopping: threading.Event | None = None,
        messages_per_second: float = 0,
    ) -> None:
        self._maildir = maildir
        self._job = job
        self._progress = progress
        self._stopping = stopping or threading.Event()
        self._rate = messages_per_second
        self.counts = Counts()

    def __call__(self) -> Counts:
        """Go through all folders. Raises StorageFailure where a folder cannot be worked in."""
        if self._progress is not None:
            self.counts.total = self._listed()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="conversion") as pool:
            for where in self._maildir.subdirectories():
                try:
                    self._check_exchange(where)
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

    def _check_exchange(self, where: Subdirectories) -> None:
        if not can_exchange(where):
            message = (
                f"{where.folder}: this file system cannot exchange two names in one step; "
                "conversion needs that"
            )
            raise StorageFailure(message)

    def _folder(self, where: Subdirectories, pool: ThreadPoolExecutor) -> None:
        before, names = self.counts.done, _names(where)
        for first in range(0, len(names), BATCH):
            if self._stopping.is_set():
                return
            batch, started = names[first : first + BATCH], time.monotonic()
            self._batch(where, batch, pool)
            self._pace(len(batch), started)
        if self.counts.done > before:
            # It holds headers and previews of messages in clear, and is made anew where allowed.
            where.forget(CACHE_NAME)

    def _batch(
        self, where: Subdirectories, batch: Sequence[tuple[str, str]], pool: ThreadPoolExecutor
    ) -> None:
        exchanges = [Exchange(where, sub, name) for sub, name in batch]
        sizes = dict(zip(exchanges, pool.map(self._prepared, exchanges), strict=True))
        ready = [one for one, outcome in sizes.items() if isinstance(outcome, int)]
        sizes.update(settle_all(ready))
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
        else:
            # The text of an error that nobody foresaw may hold anything.
            known = isinstance(outcome, AtRestError)
            reason = str(outcome) if known else type(outcome).__name__
            log.error("message not converted", folder=exchange.where.folder, cause=reason)
            counts.failed += 1
            counts.failures.append(Failure(exchange.where.folder, exchange.name, reason))

    def _pace(self, messages: int, started: float) -> None:
        if self._rate > 0:
            left = messages / self._rate - (time.monotonic() - started)
            self._stopping.wait(max(0.0, left))


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
