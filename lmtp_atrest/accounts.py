"""Everything done with an account's keys. Only the unlock service holds an `Accounts`.

Methods are synchronous and run in threads: opening a slot costs an Argon2id run, and every change
waits for a durable commit. Changes go through one lock here and are compared and set on the
account's epoch in the store, so that of two at once one wins and the other is told.

A change commits in this order: vaults (with the signed record it leads to), records, pin. What a
crash leaves between is completed at the next start (`repair`). A public key thus never reaches
delivery before the slots that open its private key are durable.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.crypto.records import (
    AccountRecord,
    BadDocument,
    SignedRecord,
    SiteKey,
    SitePublic,
    State,
    check_pin,
)
from lmtp_atrest.crypto.slots import Kdf, Slot, SlotKind, decoy_slot, digest_of, make_slot
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, AtRestError, Conflict, NotFound, WrongSecret, WrongState
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import SealedKey, Vault, Vaults
from lmtp_atrest.secret import Secret
from lmtp_atrest.telemetry import alarm, logger

KEEP_CLOSED_MS = 30 * 86400 * 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """What new key pairs and slots are made like; Argon2id memory in bytes."""

    curve: Curve
    argon2_memory: int
    argon2_passes: int


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as its owner may see it."""

    slot_id: str
    kind: str
    label: str
    state: str
    created: int


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account as an administrator may see it."""

    record: AccountRecord
    slots: tuple[SlotView, ...]


class Accounts:
    """Accounts by canonical name; see the module for threads, locks and order."""

    def __init__(
        self,
        records: Records,
        vaults: Vaults,
        pins: Pins,
        site_key: SiteKey,
        settings: Settings,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._vaults = vaults
        self._pins = pins
        self._site_key = site_key
        self._site: SitePublic = site_key.public
        self.settings = settings
        self._now = now
        self._lock = threading.RLock()
        self._incomplete = False
        self._nobody = AccountRecord("", "", 0, 0, (), "", "", State.PLAIN)
        self._decoy = (decoy_slot(self._kdf()),)

    # ---- reading

    def record(self, name: str) -> AccountRecord | None:
        """The account's record from the primary store; Alarm where the pin knows better."""
        signed = self._checked(lambda: self._records.by_name(name))
        if signed is None:
            return self._checked_absence(name)
        return signed.record

    def record_by_id(self, account_id: str) -> AccountRecord | None:
        """The same by account id; removed accounts are None."""
        signed = self._checked(lambda: self._records.by_id(account_id))
        if signed is None:
            if self._pins.document(account_id) is not None:
                message = f"no record of account {account_id}, but unlock has seen one"
                raise Alarm(message)
            return None
        return None if signed.record.state is State.REMOVED else signed.record

    def all(self) -> tuple[AccountRecord, ...]:
        """All accounts that were not removed, by login name."""
        found = (signed.record for signed in self._records.all())
        kept = (record for record in found if record.state is not State.REMOVED)
        return tuple(sorted(kept, key=lambda record: record.names))

    def show(self, name: str) -> AccountView:
        """One account with its slots; NotFound."""
        record = self._existing(name)
        slots = self._vault(record).slots if record.vault_id else ()
        return AccountView(
            record,
            tuple(SlotView(s.slot_id, s.kind, s.label, s.state, s.created) for s in slots),
        )

    # ---- opening

    def open(self, record: AccountRecord, secret: Secret) -> VaultKey:
        """The vault key that this secret opens; runs Argon2id in the calling thread.

        WrongSecret if no slot opens, Damaged or Alarm where a slot or the vault is not what the
        signed record says.
        """
        return self._opened(self._vault(record).slots, record, secret)

    def _opened(self, slots: tuple[Slot, ...], record: AccountRecord, secret: Secret) -> VaultKey:
        for slot in slots:
            if slot.kind is not SlotKind.PASSWORD:
                continue
            try:
                vault_key = slot.open(secret)
            except WrongSecret:
                continue
            if not secrets.compare_digest(vault_key.commitment(), record.vault_commitment):
                message = f"slot {slot.slot_id} opens another vault than the record names"
                raise Alarm(message)
            return vault_key
        message = f"no slot of account {record.account_id} opens with this secret"
        raise WrongSecret(message)

    def dummy_open(self, secret: Secret) -> VaultKey:
        """Do the work of `open`, for a name that does not exist; ends in WrongSecret.

        The decoy is like a new slot; slots made with other KDF settings take another time.
        """
        self._vaults.get(self._nobody.vault_id)
        digest_of(self._decoy)
        return self._opened(self._decoy, self._nobody, secret)

    def private_keys(self, record: AccountRecord, vault_key: VaultKey) -> tuple[PrivateKey, ...]:
        """All generations, newest first. Alarm, and no key, where one is not what was signed."""
        keys = []
        for sealed in self._vault(record).keys:
            der = vault_key.unseal(
                sealed.sealed, record.account_id, record.vault_id, sealed.key_id
            )
            keys.append(PrivateKey.from_der(der))
        if tuple(key.public.key_id.hex() for key in keys) != record.key_ids:
            message = f"private keys of account {record.account_id} are not those of its record"
            raise Alarm(message)
        if not keys or keys[0].public.spki != record.public_key:
            message = f"account {record.account_id} has a public key that its vault does not hold"
            raise Alarm(message)
        return tuple(keys)

    # ---- changing

    def add(self, names: list[str], home: str, maildir: str) -> AccountRecord:
        """A new plain account; Conflict if a name is taken."""
        with self._writing():
            for name in names:
                self._check_free(name)
            record = AccountRecord(
                site_id=self._site_key.site_id,
                account_id=secrets.token_hex(16),
                epoch=1,
                created=self._milliseconds(),
                names=tuple(names),
                home=home,
                maildir=maildir,
                state=State.PLAIN,
            )
            return self._commit(record)

    def enable(self, name: str, secret: Secret) -> AccountRecord:
        """A key pair, a vault and a password slot; delivery encrypts from now on.

        WrongState unless the account is plain. The caller waits for the barrier (DESIGN 5).
        """
        record = self._existing(name)
        if record.state is not State.PLAIN:
            message = f"{name} is {record.state.value} already"
            raise WrongState(message)
        vault_key, vault_id = VaultKey.generate(), secrets.token_hex(16)
        slot = self._password_slot(record.account_id, vault_id, vault_key, secret)
        key, sealed = self._new_key(record.account_id, vault_id, vault_key, generation=1)
        vault = Vault(vault_id, record.account_id, (slot,), (sealed,))
        after = record.next(
            state=State.ENCRYPTED,
            public_key=key.public.spki,
            key_ids=(key.public.key_id.hex(),),
            vault_id=vault_id,
            vault_commitment=vault_key.commitment(),
            slots_digest=digest_of(vault.slots),
        )
        # Opened once before anything is encrypted to it: Argon2id twice, once in a mailbox's life.
        if slot.open(secret) != vault_key:
            message = "a new slot does not open with its own secret"
            raise Alarm(message)
        with self._writing():
            return self._commit(after, vault)

    def rekey(self, record: AccountRecord, vault_key: VaultKey) -> AccountRecord:
        """A new vault key for all slots, all private keys under it, and a new key pair.

        One secret is enough: the other slots take the new vault key by their public keys. Conflict
        where the account changed since `record` was read.
        """
        keys = self.private_keys(record, vault_key)
        old, fresh = self._vault(record), VaultKey.generate()
        ids = (record.account_id, record.vault_id)
        generation = max(sealed.generation for sealed in old.keys) + 1
        new_key, new_sealed = self._new_key(*ids, fresh, generation)
        resealed = (
            replace(sealed, sealed=fresh.seal(key.der(), *ids, sealed.key_id))
            for sealed, key in zip(old.keys, keys, strict=True)
        )
        slots = tuple(slot.resealed(fresh) for slot in old.slots)
        vault = replace(old, slots=slots, keys=(new_sealed, *resealed))
        after = record.next(
            public_key=new_key.public.spki,
            key_ids=(new_key.public.key_id.hex(), *record.key_ids),
            vault_commitment=fresh.commitment(),
            slots_digest=digest_of(vault.slots),
        )
        with self._writing():
            return self._commit(after, vault)

    def rename(self, name: str, new: str) -> AccountRecord:
        """Another login name; the old one is dropped. NotFound, Conflict."""
        with self._writing():
            record = self._existing(name)
            self._check_free(new)
            others = tuple(n for n in record.names if n != name)
            return self._commit(record.next(names=(new, *others)))

    def alias_add(self, name: str, alias: str) -> AccountRecord:
        """One more name; NotFound, Conflict."""
        with self._writing():
            record = self._existing(name)
            self._check_free(alias)
            return self._commit(record.next(names=(*record.names, alias)))

    def alias_remove(self, name: str, alias: str) -> AccountRecord:
        """One name less; NotFound, WrongState for the only or the login name."""
        with self._writing():
            record = self._existing(name)
            if alias not in record.names:
                message = f"{alias} is not a name of this account"
                raise NotFound(message)
            if alias == record.names[0]:
                message = f"{alias} is the login name; rename the account instead"
                raise WrongState(message)
            return self._commit(record.next(names=tuple(n for n in record.names if n != alias)))

    def remove(self, name: str) -> AccountRecord:
        """Give the names free and close the vault; it is kept for 30 days, then forgotten."""
        with self._writing():
            record = self._existing(name)
            return self._commit(record.next(state=State.REMOVED))

    # ---- at start

    def repair(self) -> None:
        """Complete what a crash left between the stores, and forget vaults closed long ago."""
        self._complete()
        forgotten = self._vaults.purge(self._milliseconds() - KEEP_CLOSED_MS)
        if forgotten:
            logger("accounts").info("forgot closed vaults", count=forgotten)

    def _complete(self) -> None:
        for document in self._vaults.unfinished():
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

    # ---- shared

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One change at a time, each on top of complete ones."""
        with self._lock:
            if self._incomplete:
                self._complete()
            yield

    def _existing(self, name: str) -> AccountRecord:
        record = self.record(name)
        if record is None:
            message = f"no account has the name {name}"
            raise NotFound(message)
        return record

    def _check_free(self, name: str) -> None:
        if self.record(name) is not None:
            message = f"{name} is the name of an account already"
            raise Conflict(message)

    def _checked(self, find: Callable[[], SignedRecord | None]) -> SignedRecord | None:
        """What `find` reads, compared with the pin; Alarm where the pin knows better."""
        signed = find()
        if signed is None:
            return None
        pin = self._pins.document(signed.record.account_id)
        if pin is not None and pin != signed.document:
            # A change may have come between the two reads. Records come before their pins, so a
            # record read after the pin is at least as new, or the store is not what it was.
            signed = find()
            if signed is None:
                return None
        if check_pin(signed, pin, self._site, self._records.by_id):
            self._pins.remember(signed)
        return signed

    def _checked_absence(self, name: str) -> AccountRecord | None:
        """None where the name is free; its record where it came while we looked."""
        account_id = self._pins.account_named(name)
        if account_id is None:
            return None
        again = self._checked(lambda: self._records.by_name(name))
        if again is not None:
            return again.record
        signed = self._checked(lambda: self._records.by_id(account_id))
        record = signed.record if signed else None
        if record is None or (record.state is not State.REMOVED and name in record.names):
            message = f"no record for a name of account {account_id}, which unlock has seen"
            raise Alarm(message)
        return None

    def _vault(self, record: AccountRecord) -> Vault:
        vault = self._vaults.get(record.vault_id)
        if vault is None or vault.account_id != record.account_id:
            message = f"the vault of account {record.account_id} is missing"
            raise Alarm(message)
        if digest_of(vault.slots) != record.slots_digest:
            # The vaults store commits first: it may be ahead of a record, never behind.
            if (self._vaults.epoch(record.account_id) or 0) > record.epoch:
                message = f"account {record.account_id} is being changed"
                raise Conflict(message)
            message = f"the slots of account {record.account_id} are not those of its record"
            raise Alarm(message)
        return vault

    def _password_slot(
        self, account_id: str, vault_id: str, vault_key: VaultKey, secret: Secret
    ) -> Slot:
        return make_slot(
            secret,
            vault_key,
            account_id=account_id,
            vault_id=vault_id,
            kind=SlotKind.PASSWORD,
            kdf=self._kdf(),
            created=self._milliseconds(),
        )

    def _kdf(self) -> Kdf:
        return Kdf.argon2id(self.settings.argon2_memory, self.settings.argon2_passes)

    def _new_key(
        self, account_id: str, vault_id: str, vault_key: VaultKey, generation: int
    ) -> tuple[PrivateKey, SealedKey]:
        key = PrivateKey.generate(self.settings.curve)
        sealed = vault_key.seal(key.der(), account_id, vault_id, key.public.key_id)
        return key, SealedKey(key.public.key_id, generation, sealed)

    def _commit(self, record: AccountRecord, vault: Vault | None = None) -> AccountRecord:
        signed = self._site_key.sign(record)
        # Until it is published. A commit that failed may be durable all the same.
        before, self._incomplete = self._incomplete, True
        try:
            self._vaults.change(signed, vault)
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

    def _publish(self, signed: SignedRecord) -> None:
        self._records.put(signed)
        self._pins.remember(signed)
        if signed.record.state is State.REMOVED:
            self._vaults.close(signed.record.vault_id, self._milliseconds())
        self._vaults.finished(signed)

    def _milliseconds(self) -> int:
        return int(self._now() * 1000)
