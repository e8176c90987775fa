"""All mail of one account: runs until nothing is left to do, and the book of it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtp_atrest.config import Config
from lmtp_atrest.conversion.forms import Job
from lmtp_atrest.conversion.run import AT_ONCE, Counts, Pace, Run
from lmtp_atrest.conversion.state import States
from lmtp_atrest.maildir import Layout, Maildir
from lmtp_atrest.maildir.caches import forget_caches

# Mail that a client moves from folder to folder can escape one pass after the other.
PASSES = 5
# DESIGN 5: a delivery that read the state before a change has ended after this.
BARRIER_MS = 5000
NOTE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an account's mail lies. `since` (milliseconds) is when its state changed."""

    account_id: str
    root: Path
    maildir: Path
    inbox: Path
    layout: Layout
    since: int = 0
    indexes: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls,
        config: Config,
        account_id: str,
        home: str,
        maildir: str,
        since: int,
        names: Sequence[str] = (),
    ) -> "Place":
        """By the configuration and what the account's record says."""
        inbox = config.mail.inbox_of(home, maildir)
        layout = Layout.of(config.lmtp)
        indexes = config.mail.indexes_of(home, maildir, names)
        return cls(
            account_id, config.mail.root, Path(maildir), Path(inbox), layout, since, indexes
        )

    def open(self) -> Maildir:
        """The Maildir; NotFound where there is none yet."""
        return Maildir.open(
            self.root, self.maildir, create=False, inbox=self.inbox, layout=self.layout
        )

    def forget_caches(self, folder: str) -> None:
        """Remove Dovecot's index cache of a folder where that is kept elsewhere."""
        forget_caches(self.indexes, folder, self.layout)


def convert(
    place: Place,
    job: Job,
    states: States,
    *,
    stopping: threading.Event | None = None,
    pace: Pace = AT_ONCE,
    exchange: bool = True,
    progress: Callable[[Counts], None] = lambda _counts: None,
    now: Callable[[], float] = time.time,
) -> tuple[Counts, bool]:
    """Passes over the mailbox until one finds nothing to do; the counts, and whether it came to
    that.

    Only a pass that began after the barrier can say so. Raises Conflict where another run works on
    the account, NotFound without a Maildir, StorageFailure.
    """
    stop = _Stop(stopping or threading.Event())
    with states.exclusive(place.account_id), place.open() as maildir:
        states.begin(place.account_id, job.direction, int(now() * 1000))
        book = _Book(place.account_id, states, progress, stop, now)
        for _ in range(PASSES):
            stop.wait(max(0.0, (place.since + BARRIER_MS) / 1000 - now()))
            started = int(now() * 1000)
            counts = Run(
                maildir,
                job,
                progress=book.note,
                stopping=stop,
                pace=pace,
                exchange=exchange,
                forget_caches=place.forget_caches,
            )()
            book.add(counts)
            if stop.is_set():
                break
            if not counts.done and not counts.vanished:
                states.note(place.account_id, book.total, int(now() * 1000), "done")
                if not counts.failed:
                    states.clean(place.account_id, started)
                return book.total, not counts.failed
        # Whoever is not paused goes on by itself: after a restart, and where a client moves mail.
        state = "paused" if states.is_paused(place.account_id) else "waiting"
        states.note(place.account_id, book.total, int(now() * 1000), state)
        return book.total, False


class _Stop:
    """The service ends, or this one run was paused."""

    def __init__(self, ending: threading.Event) -> None:
        self._ending = ending
        self.paused = False

    def is_set(self) -> bool:
        return self.paused or self._ending.is_set()

    def wait(self, timeout: float) -> bool:
        return self._ending.wait(timeout)


class _Book:
    """Adds up the passes; writes down how far they are, and hears of a pause."""

    def __init__(
        self,
        account_id: str,
        states: States,
        progress: Callable[[Counts], None],
        stop: _Stop,
        now: Callable[[], float],
    ) -> None:
        self.total = Counts()
        self._account_id = account_id
        self._states = states
        self._progress = progress
        self._stop = stop
        self._now = now
        self._noted = 0.0

    def note(self, counts: Counts) -> None:
        """A batch of the pass under way is done."""
        so_far = self._with(counts)
        self._progress(so_far)
        if self._now() - self._noted < NOTE_SECONDS:
            return
        self._noted = self._now()
        self._states.note(self._account_id, so_far, int(self._noted * 1000))
        self._stop.paused = self._states.is_paused(self._account_id)

    def add(self, counts: Counts) -> None:
        """A pass is over."""
        self.total = self._with(counts)

    def _with(self, counts: Counts) -> Counts:
        # What was skipped or failed is met again by each pass, and counts once.
        return Counts(
            done=self.total.done + counts.done,
            skipped=max(0, counts.skipped - self.total.done),
            vanished=self.total.vanished + counts.vanished,
            failed=counts.failed,
            bytes=self.total.bytes + counts.bytes,
            failures=counts.failures,
            total=counts.total,
        )
