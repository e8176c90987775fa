"""The convert service: old mail of encrypted accounts, and what other programs leave in clear.

Encrypting needs public keys only, so this process has no secret and asks for none. It works with
idle priority, one account after the other, no faster than the configuration says.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmtp_atrest.config import Config
from lmtp_atrest.conversion.account import NOTE_SECONDS, Place, convert
from lmtp_atrest.conversion.forms import Direction, Job
from lmtp_atrest.conversion.run import Counts, Pace
from lmtp_atrest.conversion.state import RunState, States
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import AccountRecord, State
from lmtp_atrest.errors import AtRestError, Conflict, NotFound
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.telemetry import logger

LOOK_SECONDS = 5.0
# After trouble with an account, before it is tried again.
RETRY_MS = 3600 * 1000
SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13  # linux/ioprio.h

log = logger("conversion")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the mail of an account is: messages; `updated` in milliseconds since 1970."""

    account_id: str
    state: str
    encrypted: int
    left: int
    failed: int
    updated: int


class Background:
    """Looks for accounts with work, and does it; `tell` hears how far that is.

    What `tell` answers says whether it was heard; once not, all is told again.
    """

    def __init__(
        self,
        config: Config,
        records: Records,
        states: States,
        stopping: threading.Event,
        now: Callable[[], float] = time.time,
        tell: Callable[[Progress], bool] = lambda _progress: True,
    ) -> None:
        self._tell = tell
        self._told: dict[str, int] = {}
        self._told_at = 0.0
        self._config = config
        self._records = records
        self._states = states
        limits = config.conversion
        self._pace = Pace(limits.messages_per_second, limits.bytes_per_second)
        self._stopping = stopping
        self._now = now

    def run(self) -> None:
        """Until told to stop."""
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except AtRestError as error:
                log.error("accounts not looked at", cause=str(error))

    def look(self) -> int:
        """One look at all accounts; how many were worked on."""
        rows = {row.account_id: row for row in self._states.all()}
        self._tell_all(rows.values())
        worked = 0
        for signed in self._records.all():
            record = signed.record
            if self._stopping.is_set():
                break
            ours = record.state is State.ENCRYPTED and not record.has_own_certificates
            if ours and self._due(record, rows.get(record.account_id)):
                self._work(record)
                worked += 1
        return worked

    def _tell_all(self, rows: Iterable[RunState]) -> None:
        """What was not told yet; else the oldest again, which shows that somebody listens."""
        rows = list(rows)
        news = [row for row in rows if self._told.get(row.account_id) != row.updated]
        for row in news or rows[:1]:
            encrypted = row.done + row.skipped
            told = Progress(row.account_id, row.state, encrypted, 0, row.failed, row.updated)
            if not self._tell(told):
                self._told.clear()
                return
            self._told[row.account_id] = row.updated

    def _note(self, account_id: str, counts: Counts) -> None:
        """A run is under way; not told more often than anybody would look."""
        now = self._now()
        if now - self._told_at < NOTE_SECONDS:
            return
        self._told_at = now
        encrypted, left = counts.done + counts.skipped, max(0, counts.total - counts.seen)
        millis = int(now * 1000)
        self._tell(Progress(account_id, "running", encrypted, left, counts.failed, millis))

    def _due(self, record: AccountRecord, row: RunState | None) -> bool:
        if row is None:
            return True
        now = int(self._now() * 1000)
        if row.state == "paused" or (row.failed and now - row.updated < RETRY_MS):
            return False
        if row.clean is None or row.clean < record.vault_key_since:
            return True
        return now - row.clean > self._config.conversion.sweep_every * 1000

    def _work(self, record: AccountRecord) -> None:
        since = record.vault_key_since
        place = Place.of(
            self._config, record.account_id, record.home, record.maildir, since, record.names
        )
        key = PublicKey.from_der(record.public_key)
        job = Job(Direction.ENCRYPT, key, None, self._config.atrest.pbkdf2_rounds)
        try:
            counts, clean = convert(
                place,
                job,
                self._states,
                stopping=self._stopping,
                pace=self._pace,
                exchange=self._config.conversion.exchange,
                progress=lambda so_far: self._note(record.account_id, so_far),
                now=self._now,
            )
        except Conflict:
            return  # a run by hand is at it
        except NotFound:
            self._nothing_there(record)
            return
        except AtRestError as error:
            log.error("account not converted", account=record.account_id, cause=str(error))
            return
        if counts.done or counts.failed:
            log.info(
                "account converted",
                account=record.account_id,
                done=counts.done,
                failed=counts.failed,
                clean=clean,
            )

    def _nothing_there(self, record: AccountRecord) -> None:
        """No Maildir yet: there is nothing in clear in it."""
        now = int(self._now() * 1000)
        self._states.begin(record.account_id, Direction.ENCRYPT, now)
        self._states.clean(record.account_id, now)


def be_idle() -> None:
    """Let everybody else go first, at the processor and, where we know how, at the disk."""
    os.nice(19)
    number = SYS_IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        ctypes.CDLL(None).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)
