"""From a secret to an open vault: the order of checks, and at most one Argon2id run per secret.

1. A secret that was wrong minutes ago is wrong again, at once and uncounted.
2. A guess (nobody verified it) waits out its source's gap, with `Busy` and not with a sleep.
3. An open vault recognises a secret that opened it: no Argon2id.
4. The same secret on its way already is waited for, not run twice.
5. A guess is counted against source and account; then Argon2id runs in a pool as wide as the
   cores. A full queue is `Busy` at once.

A name without an account goes the same way and ends in `WrongSecret` after the same work.
"""

import asyncio
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lmtp_atrest.accounts import Accounts, Opened
from lmtp_atrest.crypto.records import AccountRecord, State
from lmtp_atrest.crypto.slots import SlotKind, SlotState
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Busy, Conflict, WrongSecret
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.guessing import Guessing
from lmtp_atrest.unlock.vaults import OpenVault, OpenVaults, Recogniser, WrongSecrets

# At 90 ms a run (64 MiB, 3 passes) the last of these waits about 3 s, well below the 20 s after
# which Dovecot's script gives up.
WAITING_PER_CORE = 32

T = TypeVar("T")


class Settle(Protocol):
    """What is due once a secret has opened a vault: the record and vault key after it."""

    def __call__(
        self, record: AccountRecord, opened: Opened, secret: Secret, *, verified: bool
    ) -> tuple[AccountRecord, VaultKey]:
        """Never fails: what is not settled now is at the next login."""


class KdfPool:
    """Threads for Argon2id, which releases the GIL, with a bounded queue before them."""

    def __init__(self, width: int | None = None, waiting_per_core: int = WAITING_PER_CORE) -> None:
        self.width = width or os.cpu_count() or 1
        self._limit = self.width * (1 + waiting_per_core)
        self._executor = ThreadPoolExecutor(self.width, thread_name_prefix="argon2id")
        self.pending = 0
        self.runs = 0

    def check_room(self) -> None:
        """Busy when the queue is full."""
        if self.pending >= self._limit:
            message = "the queue for Argon2id is full"
            raise Busy(message, 2.0)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result from a thread of the pool; Busy at once when the queue is full."""
        self.check_room()
        self.pending += 1
        self.runs += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, function, *arguments)
        finally:
            self.pending -= 1

    def close(self) -> None:
        """Let what runs end, and start nothing more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Try:
    """A secret on its way to open a vault.

    `kind` and `handle` say which slots are meant; `verified` that the site's own passdb accepted
    the secret, so that it is no guess.
    """

    record: AccountRecord
    secret: Secret
    source: str
    verified: bool = False
    kind: SlotKind = SlotKind.PASSWORD
    handle: str = ""

    @property
    def counted(self) -> bool:
        """Whether this is a guess; one at a generated secret of 130 bits costs nobody anything."""
        return not self.verified and self.kind is SlotKind.PASSWORD


class Opener:
    """Opens vaults, each secret by one Argon2id run or none."""

    def __init__(
        self,
        accounts: Accounts,
        vaults: OpenVaults,
        pool: KdfPool,
        trusted_sources: Collection[str],
        now: Callable[[], float],
        settle: Settle,
    ) -> None:
        self._accounts = accounts
        self._settle = settle
        self._vaults = vaults
        self._pool = pool
        self._now = now
        self._recogniser = Recogniser()
        self._wrong = WrongSecrets()
        self._guessing = Guessing(trusted_sources)
        # Apart, so that a flood of names that do not exist pushes out no count of one that does.
        self._stranger_guessing = Guessing(trusted_sources)
        self._running: dict[bytes, asyncio.Task[OpenVault]] = {}

    def nobody(self, name: str) -> AccountRecord:
        """A record that stands for no account, so that its opening costs what a real one does."""
        return AccountRecord(
            site_id="",
            account_id=self._recogniser.pseudonym(name),
            epoch=0,
            created=0,
            names=(),
            home="",
            maildir="",
            state=State.PLAIN,
        )

    async def open(self, attempt: Try) -> OpenVault:
        """The account's open vault, if the secret opens it.

        The record was just read from the primary store. What this settles may change the account:
        then the vault is that of the record after it. WrongSecret, Busy, Conflict, Damaged, Alarm;
        WrongState for a frozen account.
        """
        record, source = attempt.record, attempt.source
        mark = self._recogniser.mark(record, attempt.secret, attempt.kind)
        if self._wrong.knows(mark, self._now()):
            message = "the secret was wrong a moment ago"
            raise WrongSecret(message)
        guessing = self._guessing_about(record)
        if attempt.counted:
            guessing.check_source(record.account_id, source, self._now())
        vault = self._vaults.current(record, self._now())
        if vault is not None and vault.recognises(mark, verified=attempt.verified):
            guessing.succeeded(record.account_id, source, counted=False)
        else:
            vault = await self._joined(attempt, mark)
        self._vaults.use(vault, self._now())
        return vault

    async def prove(self, attempt: Try, opening: Callable[[], VaultKey] | None = None) -> VaultKey:
        """The vault key, if the secret opens the vault; a frozen one too, and none stays open.

        With the limits of `open` and its errors. `opening` is what to do instead with the secret,
        where that is to open another vault than the present one: then it blocks, and raises
        WrongSecret.
        """
        record, source = attempt.record, attempt.source
        mark = self._recogniser.mark(record, attempt.secret, attempt.kind)
        if opening is None and self._wrong.knows(mark, self._now()):
            message = "the secret was wrong a moment ago"
            raise WrongSecret(message)
        guessing = self._guessing_about(record)
        if attempt.counted:
            guessing.check_source(record.account_id, source, self._now())
        vault = self._vaults.current(record, self._now())
        if opening is None and vault is not None and vault.recognises(mark):
            guessing.succeeded(record.account_id, source, counted=False)
            return vault.vault_key
        self._pool.check_room()
        if attempt.counted:
            guessing.begin(record.account_id, source, self._now())
        remembered = mark if opening is None else None
        return await self._guess(attempt, remembered, opening or (lambda: self._only(attempt)))

    def mark_of(self, name: str, secret: Secret) -> bytes:
        """A keyed hash of a secret seen with a name, good in this process only."""
        return self._recogniser.mark(self.nobody(name), secret)

    def wipe(self) -> None:
        """Forget the marks of wrong secrets."""
        self._wrong.wipe()

    def _guessing_about(self, record: AccountRecord) -> Guessing:
        return self._guessing if record.holds_ciphertext else self._stranger_guessing

    async def _joined(self, attempt: Try, mark: bytes) -> OpenVault:
        task = self._running.get(mark)
        if task is None:
            self._pool.check_room()
            record = attempt.record
            if attempt.counted:
                self._guessing_about(record).begin(record.account_id, attempt.source, self._now())
            task = asyncio.create_task(self._derived(attempt, mark))
            self._running[mark] = task
            task.add_done_callback(lambda done: self._ended(mark, done))
        # One peer that goes away does not take the answer from the others.
        return await asyncio.shield(task)

    def _ended(self, mark: bytes, task: asyncio.Task[OpenVault]) -> None:
        del self._running[mark]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _derived(self, attempt: Try, mark: bytes) -> OpenVault:
        after, opened = await self._guess(attempt, mark, lambda: self._settled(attempt))
        await self._check_unchanged(after)
        mark = self._recogniser.mark(after, attempt.secret, attempt.kind)
        pending = opened.slot.state is SlotState.PENDING and not attempt.verified
        return self._vaults.put(
            after, opened.vault_key, mark, attempt.source, self._now(), pending=pending
        )

    async def _guess(self, attempt: Try, mark: bytes | None, opening: Callable[[], T]) -> T:
        """What `opening` opens in a thread of the pool, counted as right, wrong or neither."""
        record, source = attempt.record, attempt.source
        guessing = self._guessing_about(record)
        try:
            opened = await self._pool.run(opening)
        except WrongSecret:
            if mark is not None:
                self._wrong.add(mark, self._now())
            raise
        except BaseException:
            if attempt.counted:
                guessing.withdraw(record.account_id, source)
            raise
        guessing.succeeded(record.account_id, source, counted=attempt.counted)
        return opened

    def _only(self, attempt: Try) -> VaultKey:
        record, secret = attempt.record, attempt.secret
        if not record.holds_ciphertext:
            self._accounts.dummy_open(secret)
        return self._accounts.open(record, secret, attempt.kind, frozen=True).vault_key

    def _settled(self, attempt: Try) -> tuple[AccountRecord, Opened]:
        record, secret = attempt.record, attempt.secret
        if not record.holds_ciphertext:
            self._accounts.dummy_open(secret)
        opened = self._accounts.open(record, secret, attempt.kind, handle=attempt.handle)
        after, vault_key = self._settle(record, opened, secret, verified=attempt.verified)
        return after, Opened(vault_key, opened.slot)

    async def _check_unchanged(self, record: AccountRecord) -> None:
        """Conflict if the account changed while Argon2id ran, which takes seconds under load."""
        after = await asyncio.to_thread(self._accounts.record_by_id, record.account_id)
        if after is None or after.epoch != record.epoch:
            message = f"account {record.account_id} changed while its vault was opened"
            raise Conflict(message)
