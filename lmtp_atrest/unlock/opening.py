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
from typing import TypeVar

from lmtp_atrest.accounts import Accounts
from lmtp_atrest.crypto.records import AccountRecord, State
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Busy, Conflict, WrongSecret
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.guessing import Guessing
from lmtp_atrest.unlock.vaults import OpenVault, OpenVaults, Recogniser, WrongSecrets

# At 90 ms a run (64 MiB, 3 passes) the last of these waits about 3 s, well below the 20 s after
# which Dovecot's script gives up.
WAITING_PER_CORE = 32

T = TypeVar("T")


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


class Opener:
    """Opens vaults, each secret by one Argon2id run or none."""

    def __init__(
        self,
        accounts: Accounts,
        vaults: OpenVaults,
        pool: KdfPool,
        trusted_sources: Collection[str],
        now: Callable[[], float],
    ) -> None:
        self._accounts = accounts
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

    async def open(
        self, record: AccountRecord, secret: Secret, source: str, *, verified: bool = False
    ) -> OpenVault:
        """The open vault of this account, if the secret opens it.

        `record` was just read from the primary store; `verified` says that the site's own passdb
        accepted the secret, so that it is no guess. WrongSecret, Busy, Conflict, Damaged, Alarm.
        """
        mark = self._recogniser.mark(record, secret)
        if self._wrong.knows(mark, self._now()):
            message = "the secret was wrong a moment ago"
            raise WrongSecret(message)
        guessing = self._guessing_about(record)
        if not verified:
            guessing.check_source(record.account_id, source, self._now())
        vault = self._vaults.current(record, self._now())
        if vault is not None and vault.recognises(mark):
            guessing.succeeded(record.account_id, source, counted=False)
        else:
            vault = await self._joined(record, secret, mark, source, verified=verified)
        self._vaults.use(vault, self._now())
        return vault

    def wipe(self) -> None:
        """Forget the marks of wrong secrets."""
        self._wrong.wipe()

    def _guessing_about(self, record: AccountRecord) -> Guessing:
        return self._guessing if record.holds_ciphertext else self._stranger_guessing

    async def _joined(
        self, record: AccountRecord, secret: Secret, mark: bytes, source: str, *, verified: bool
    ) -> OpenVault:
        task = self._running.get(mark)
        if task is None:
            self._pool.check_room()
            if not verified:
                self._guessing_about(record).begin(record.account_id, source, self._now())
            run = self._derived(record, secret, mark, source, counted=not verified)
            task = asyncio.create_task(run)
            self._running[mark] = task
            task.add_done_callback(lambda done: self._ended(mark, done))
        # One peer that goes away does not take the answer from the others.
        return await asyncio.shield(task)

    def _ended(self, mark: bytes, task: asyncio.Task[OpenVault]) -> None:
        del self._running[mark]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _derived(
        self, record: AccountRecord, secret: Secret, mark: bytes, source: str, *, counted: bool
    ) -> OpenVault:
        guessing = self._guessing_about(record)
        try:
            vault_key = await self._pool.run(self._vault_key, record, secret)
        except WrongSecret:
            self._wrong.add(mark, self._now())
            raise
        except BaseException:
            if counted:
                guessing.withdraw(record.account_id, source)
            raise
        guessing.succeeded(record.account_id, source, counted=counted)
        await self._check_unchanged(record)
        return self._vaults.put(record, vault_key, mark, source, self._now())

    def _vault_key(self, record: AccountRecord, secret: Secret) -> VaultKey:
        if record.holds_ciphertext:
            return self._accounts.open(record, secret)
        return self._accounts.dummy_open(secret)

    async def _check_unchanged(self, record: AccountRecord) -> None:
        """Conflict if the account changed while Argon2id ran, which takes seconds under load."""
        after = await asyncio.to_thread(self._accounts.record_by_id, record.account_id)
        if after is None or after.epoch != record.epoch:
            message = f"account {record.account_id} changed while its vault was opened"
            raise Conflict(message)
