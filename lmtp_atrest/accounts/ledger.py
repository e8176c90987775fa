"""What is true of all accounts: the three stores read together, and changes committed in order.

A change commits in this order: vaults (with the signed record it leads to), records, pin. What a
crash leaves between is completed at the next start (`repair`). A public key thus never reaches
delivery before the slots that open its private key are durable. Changes go through one lock here
and are compared and set on the account's epoch in the store, so that of two at once one wins and
the other is told.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lmtp_atrest.crypto.records import (
    AccountRecord,
    BadDocument,
    SignedRecord,
    SiteKey,
    State,
    VaultSeal,
    check_pin,
)
from lmtp_atrest.crypto.slots import digest_of
from lmtp_atrest.errors import Alarm, AtRestError, Conflict, NotFound, WrongState
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import Vault, Vaults
from lmtp_atrest.telemetry import alarm, logger

KEEP_CLOSED_MS = 30 * 86400 * 1000


class Ledger:
    """Accounts by canonical name and id. Methods block, and may be called from any thread."""

    def __init__(
        self,
        records: Records,
        vaults: Vaults,
        pins: Pins,
        site_key: SiteKey,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.records = records
        self.vaults = vaults
        self.pins = pins
        self.site_key = site_key
        self._site = site_key.public
        self._now = now
        self._lock = threading.RLock()
        self._incomplete = False

    # ---- reading

    def record(self, name: str) -> AccountRecord | None:
        """The account's record from the primary store; Alarm where the pin knows better."""
        signed = self._checked(lambda: self.records.by_name(name))
        if signed is None:
            return self._checked_absence(name)
        return signed.record

    def record_by_id(self, account_id: str) -> AccountRecord | None:
        """The same by account id; removed accounts are None."""
        signed = self._checked(lambda: self.records.by_id(account_id))
        if signed is None:
            if self.pins.document(account_id) is not None:
                message = f"no record of account {account_id}, but unlock has seen one"
                raise Alarm(message)
            return None
        return None if signed.record.state is State.REMOVED else signed.record

    def all(self) -> tuple[AccountRecord, ...]:
        """All accounts that were not removed, by login name."""
        found = (signed.record for signed in self.records.all())
        kept = (record for record in found if record.state is not State.REMOVED)
        return tuple(sorted(kept, key=lambda record: record.names))

    # ---- at start

    def repair(self) -> None:
        """Complete what a crash left between the stores, and forget vaults closed long ago."""
        self._complete()
        forgotten = self.vaults.purge(self.milliseconds() - KEEP_CLOSED_MS)
        if forgotten:
            logger("accounts").info("forgot closed vaults", count=forgotten)

    def _complete(self) -> None:
        for document in self.vaults.unfinished():
            try:
                signed = self._site.verify(document)
                self._publish(signed)
            except (BadDocument, Conflict) as error:
                # One account is stuck until an operator looks; all others go on.
                alarm("accounts", "unfinished change does not fit", cause=str(error))
                continue
            logger("accounts").warning(
                "completed a change that was cut short",
                account=signed.record.account_id,
                epoch=signed.record.epoch,
            )
        self._incomplete = False

    def _catch_up(self) -> None:
        """Where a change of ours stopped half-way, complete it for those who wait for its end."""
        if not self._incomplete:
            return
        try:
            with self.writing():
                pass
        except AtRestError as error:
            logger("accounts").error("change is still not complete", cause=str(error))

    # ---- shared

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One change at a time, each on top of complete ones."""
        with self._lock:
            if self._incomplete:
                self._complete()
            yield

    def existing(self, name: str) -> AccountRecord:
        """The account of this name; NotFound."""
        record = self.record(name)
        if record is None:
            message = f"no account has the name {name}"
            raise NotFound(message)
        return record

    def check_free(self, name: str) -> None:
        """Conflict where an account has this name."""
        if self.record(name) is not None:
            message = f"{name} is the name of an account already"
            raise Conflict(message)

    def _checked(self, find: Callable[[], SignedRecord | None]) -> SignedRecord | None:
        """What `find` reads, compared with the pin; Alarm where the pin knows better."""
        signed = find()
        if signed is None:
            return None
        pin = self.pins.document(signed.record.account_id)
        if pin is not None and pin != signed.document:
            # A change may have come between the two reads. Records come before their pins, so a
            # record read after the pin is at least as new, or the store is not what it was.
            signed = find()
            if signed is None:
                return None
        if check_pin(signed, pin, self._site, self.records.by_id):
            self.pins.remember(signed)
        return signed

    def _checked_absence(self, name: str) -> AccountRecord | None:
        """None where the name is free; its record where it came while we looked."""
        account_id = self.pins.account_named(name)
        if account_id is None:
            return None
        again = self._checked(lambda: self.records.by_name(name))
        if again is not None:
            return again.record
        signed = self._checked(lambda: self.records.by_id(account_id))
        record = signed.record if signed else None
        if record is None or (record.state is not State.REMOVED and name in record.names):
            message = f"no record for a name of account {account_id}, which unlock has seen"
            raise Alarm(message)
        return None

    def vault(self, record: AccountRecord, seal: VaultSeal | None = None) -> Vault:
        """The account's vault, or one of its closed ones.

        Damaged or Alarm where it is not what the record says, Conflict where it is being changed,
        WrongState where the account never had one.
        """
        seal = seal or record.seal
        if not seal.vault_id:
            message = f"account {record.account_id} is {record.state.value}: it has no vault"
            raise WrongState(message)
        vault = self.vaults.get(seal.vault_id)
        if vault is None or vault.account_id != record.account_id:
            message = f"the vault of account {record.account_id} is missing"
            raise Alarm(message)
        if digest_of(vault.slots) != seal.slots_digest:
            # The vaults store commits first: it may be ahead of a record, never behind.
            if (self.vaults.epoch(record.account_id) or 0) > record.epoch:
                self._catch_up()
                message = f"account {record.account_id} is being changed"
                raise Conflict(message)
            message = f"the slots of account {record.account_id} are not those of its record"
            raise Alarm(message)
        return vault

    def commit(
        self,
        record: AccountRecord,
        vault: Vault | None = None,
        drop: Sequence[str] = (),
        others: Sequence[Vault] = (),
    ) -> AccountRecord:
        """Sign this record and make it the account's; call it within `writing`.

        `vault` is what its vault holds from now on, `others` closed ones that change with it,
        `drop` names vaults that go. Conflict where the account is not at the epoch before, Alarm
        where both stores are older than what was seen: a change on top would hide that.
        """
        self._check_not_rolled_back(record)
        signed = self.site_key.sign(record)
        # Until it is published. A commit that failed may be durable all the same.
        before, self._incomplete = self._incomplete, True
        try:
            self.vaults.change(signed, vault, drop, others)
        except Conflict:
            self._incomplete = before
            raise
        try:
            self._publish(signed)
        except AtRestError as error:
            # Committed, but not yet seen by delivery: the next change or start completes it.
            logger("accounts").error(
                "change is not complete yet", account=record.account_id, cause=str(error)
            )
            raise
        self._incomplete = False
        return record

    def _check_not_rolled_back(self, record: AccountRecord) -> None:
        seen = self.pins.epoch(record.account_id) or 0
        # A head as high as this record is a race that somebody else won: a Conflict, no alarm.
        if seen >= record.epoch > (self.vaults.epoch(record.account_id) or 0):
            message = f"account {record.account_id} is older in both stores than epoch {seen}"
            raise Alarm(message)

    def _publish(self, signed: SignedRecord) -> None:
        self.records.put(signed)
        self.pins.remember(signed)
        if signed.record.state is State.REMOVED:
            for seal in (signed.record.seal, *signed.record.closed):
                self.vaults.close(seal.vault_id, self.milliseconds())
        self.vaults.finished(signed)

    def milliseconds(self) -> int:
        """The time, since 1970."""
        return int(self._now() * 1000)
