"""Accounts are made and named here, and their vaults opened."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmtp_atrest.accounts.ledger import Ledger
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.crypto.records import AccountRecord, AdminRecord, SiteKey, State, VaultSeal
from lmtp_atrest.crypto.slots import (
    Kdf,
    Slot,
    SlotKind,
    SlotState,
    decoy_slot,
    digest_of,
    make_admin_slot,
    make_slot,
)
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, Conflict, NotFound, WrongSecret, WrongState
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import SealedKey, Vault, Vaults
from lmtp_atrest.secret import Secret


@dataclass(frozen=True, slots=True)
class Settings:
    """What new key pairs and slots are made like; Argon2id memory in bytes."""

    curve: Curve
    argon2_memory: int
    argon2_passes: int


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as its owner may see it; `used` is the day of the last use, where one is kept."""

    slot_id: str
    kind: str
    label: str
    state: str
    created: int
    used: str = ""


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account as an administrator may see it."""

    record: AccountRecord
    slots: tuple[SlotView, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a secret opened: the vault key, and the slot that held it."""

    vault_key: VaultKey
    slot: Slot


class Accounts(Ledger):
    """Accounts by canonical name; see the package for threads, the ledger for locks and order."""

    def __init__(
        self,
        records: Records,
        vaults: Vaults,
        pins: Pins,
        site_key: SiteKey,
        settings: Settings,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(records, vaults, pins, site_key, now)
        self.settings = settings
        self._nobody = AccountRecord("", "", 0, 0, (), "", "", State.PLAIN)
        self._decoy = (decoy_slot(self.kdf()),)

    def show(self, name: str) -> AccountView:
        """One account with its slots; NotFound."""
        record = self.existing(name)
        slots = self.vault(record).slots if record.vault_id else ()
        used = self.vaults.uses([slot.slot_id for slot in slots])
        return AccountView(
            record,
            tuple(
                SlotView(s.slot_id, s.kind, s.label, s.state, s.created, used.get(s.slot_id, ""))
                for s in slots
            ),
        )

    # ---- opening

    def open(
        self,
        record: AccountRecord,
        secret: Secret,
        kind: SlotKind = SlotKind.PASSWORD,
        *,
        seal: VaultSeal | None = None,
        handle: str = "",
        frozen: bool = False,
    ) -> Opened:
        """What this secret opens; runs Argon2id in the calling thread for each password slot.

        `seal` names one of the closed vaults instead of the present one; `handle` is how the ids
        of the slots in question begin. WrongSecret if no slot opens, Damaged or Alarm where a slot
        or the vault is not what the signed record says, WrongState for a frozen account unless
        `frozen` says that this is known.
        """
        if record.frozen and not frozen:
            message = f"account {record.account_id} is frozen"
            raise WrongState(message)
        seal = seal or record.seal
        slots = self.vault(record, seal).slots
        tried = [s for s in slots if s.kind is kind and s.slot_id.startswith(handle)]
        # The active one first: it is the one that most logins use.
        return self._opened(sorted(tried, key=lambda slot: slot.state), record, seal, secret)

    def _opened(
        self, slots: Sequence[Slot], record: AccountRecord, seal: VaultSeal, secret: Secret
    ) -> Opened:
        for slot in slots:
            try:
                vault_key = slot.open(secret)
            except WrongSecret:
                continue
            check_commitment(vault_key, seal, slot)
            return Opened(vault_key, slot)
        message = f"no slot of account {record.account_id} opens with this secret"
        raise WrongSecret(message)

    def dummy_open(self, secret: Secret) -> Opened:
        """Do the work of `open`, for a name that does not exist; ends in WrongSecret.

        The decoy is like a new slot; slots made with other KDF settings take another time.
        """
        self.vaults.get(self._nobody.vault_id)
        digest_of(self._decoy)
        return self._opened(self._decoy, self._nobody, self._nobody.seal, secret)

    def private_keys(
        self, record: AccountRecord, vault_key: VaultKey, seal: VaultSeal | None = None
    ) -> tuple[PrivateKey, ...]:
        """All generations, newest first. Alarm, and no key, where one is not what was signed.

        `seal` names one of the closed vaults instead of the present one.
        """
        seal = seal or record.seal
        keys = []
        for sealed in self.vault(record, seal).keys:
            der = vault_key.unseal(sealed.sealed, record.account_id, seal.vault_id, sealed.key_id)
            keys.append(PrivateKey.from_der(der))
        if not keys or tuple(key.public.key_id.hex() for key in keys) != seal.key_ids:
            message = f"private keys of account {record.account_id} are not those of its record"
            raise Alarm(message)
        if seal == record.seal and keys[0].public.spki != record.public_key:
            message = f"account {record.account_id} has a public key that its vault does not hold"
            raise Alarm(message)
        return tuple(keys)

    def closed_to_admin(self, record: AccountRecord) -> list[Vault]:
        """The account's closed vaults that have a slot of the admin recovery key, without it."""
        closed = [self.vault(record, seal) for seal in record.closed]
        return [v.without(SlotKind.ADMIN) for v in closed if v.of_kind(SlotKind.ADMIN)]

    # ---- making

    def add(self, names: list[str], home: str, maildir: str) -> AccountRecord:
        """A new plain account; Conflict if a name is taken."""
        with self.writing():
            for name in names:
                self.check_free(name)
            record = AccountRecord(
                site_id=self.site_key.site_id,
                account_id=secrets.token_hex(16),
                epoch=1,
                created=self.milliseconds(),
                names=tuple(names),
                home=home,
                maildir=maildir,
                state=State.PLAIN,
            )
            return self.commit(record)

    def enable(
        self,
        name: str,
        secret: Secret,
        code: Secret | None = None,
        admin: AdminRecord | None = None,
    ) -> AccountRecord:
        """A key pair, a vault and a password slot; delivery encrypts from now on.

        `code` gets a slot of its own, as does the admin recovery key where `admin` has one and
        the policy allows it. WrongState unless the account is plain. The caller waits for the
        barrier (DESIGN 5).
        """
        record = self.existing(name)
        if record.state is not State.PLAIN:
            message = f"{name} is {record.state.value} already"
            raise WrongState(message)
        return self.new_vault(record, secret, code, admin, state=State.ENCRYPTED)

    def new_vault(
        self,
        record: AccountRecord,
        secret: Secret,
        code: Secret | None,
        admin: AdminRecord | None,
        **fields: Any,
    ) -> AccountRecord:
        """A fresh vault with a fresh key pair; one that the account has is closed, and kept."""
        closed = (record.seal, *record.closed) if record.vault_id else record.closed
        generation = self._last_generation(record, closed) + 1
        vault_key, vault_id = VaultKey.generate(), secrets.token_hex(16)
        blank = replace(record, vault_id=vault_id)
        slots = [self.password_slot(blank, vault_key, secret)]
        if code is not None:
            slots.append(self.code_slot(blank, vault_key, code))
        admin_key = self.admin_key_for(record, admin)
        if admin_key:
            slots.append(self.admin_slot(blank, vault_key, admin))
        key, sealed = self.new_key(blank, vault_key, generation)
        after = record.next(
            public_key=key.public.spki,
            key_ids=(key.public.key_id.hex(),),
            vault_id=vault_id,
            vault_commitment=vault_key.commitment(),
            slots_digest=digest_of(tuple(slots)),
            vault_key_since=self.milliseconds(),
            admin_key=admin_key,
            closed=closed,
            rekey_due=False,
            **fields,
        )
        vault = Vault(vault_id, record.account_id, tuple(slots), (sealed,))
        with self.writing():
            self._check_admin(admin)
            return self.commit(after, vault)

    def _last_generation(self, record: AccountRecord, seals: Sequence[VaultSeal]) -> int:
        """The newest generation in these vaults, so that a join can put all in order."""
        vaults = (self.vault(record, seal) for seal in seals)
        return max((key.generation for vault in vaults for key in vault.keys), default=0)

    def admin_key_for(self, record: AccountRecord, admin: AdminRecord | None) -> str:
        """The id of the admin key that a new vault of this account gets a slot of, or ''."""
        if admin is None or admin.key is None or admin.policy == "forbidden":
            return ""
        if record.admin_refused and admin.policy != "required":
            return ""
        return admin.key.key_id

    def change(
        self,
        record: AccountRecord,
        vault: Vault | None = None,
        drop: Sequence[str] = (),
        *,
        others: Sequence[Vault] = (),
        admin: AdminRecord | None = None,
        **fields: Any,
    ) -> AccountRecord:
        """Commit what follows `record`, with these fields, this vault and these closed ones.

        Conflict where the account changed since `record` was read, or admin recovery since
        `admin` was; WrongState where nobody but the administrator could open a vault any more.
        """
        for one in (*([vault] if vault else []), *others):
            _check_own_slot(one)
        if vault is not None:
            fields["slots_digest"] = digest_of(vault.slots)
        if others:
            digests = {one.vault_id: digest_of(one.slots) for one in others}
            fields["closed"] = tuple(
                replace(seal, slots_digest=digests.get(seal.vault_id, seal.slots_digest))
                for seal in record.closed
            )
        with self.writing():
            self._check_admin(admin)
            return self.commit(record.next(**fields), vault, drop, others)

    def _check_admin(self, admin: AdminRecord | None) -> None:
        """Conflict where `admin` is no longer true: a slot of a key that has just gone, or that
        a new policy forbids, would be found by nobody."""
        if admin is None:
            return
        present = self.records.admin()
        if (present.epoch if present else 0) != admin.epoch:
            message = "admin recovery was changed meanwhile"
            raise Conflict(message)

    # ---- names

    def rename(self, name: str, new: str) -> AccountRecord:
        """Another login name; the old one is dropped. NotFound, Conflict."""
        with self.writing():
            record = self.existing(name)
            self.check_free(new)
            others = tuple(n for n in record.names if n != name)
            return self.commit(record.next(names=(new, *others)))

    def alias_add(self, name: str, alias: str) -> AccountRecord:
        """One more name; NotFound, Conflict."""
        with self.writing():
            record = self.existing(name)
            self.check_free(alias)
            return self.commit(record.next(names=(*record.names, alias)))

    def alias_remove(self, name: str, alias: str) -> AccountRecord:
        """One name less; NotFound, WrongState for the only or the login name."""
        with self.writing():
            record = self.existing(name)
            if alias not in record.names:
                message = f"{alias} is not a name of this account"
                raise NotFound(message)
            if alias == record.names[0]:
                message = f"{alias} is the login name; rename the account instead"
                raise WrongState(message)
            return self.commit(record.next(names=tuple(n for n in record.names if n != alias)))

    def remove(self, name: str) -> AccountRecord:
        """Give the names free and close the vault; it is kept for 30 days, then forgotten."""
        with self.writing():
            record = self.existing(name)
            return self.commit(record.next(state=State.REMOVED))

    # ---- parts of a vault

    def password_slot(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        secret: Secret,
        state: SlotState = SlotState.ACTIVE,
    ) -> Slot:
        """A slot that this password opens, opened once before anything relies on it.

        That costs Argon2id twice, at a change of the password and once in a mailbox's life.
        """
        return self._proved(
            make_slot(
                secret,
                vault_key,
                account_id=record.account_id,
                vault_id=record.vault_id,
                kind=SlotKind.PASSWORD,
                kdf=self.kdf(),
                created=self.milliseconds(),
                state=state,
            ),
            secret,
            vault_key,
        )

    def code_slot(self, record: AccountRecord, vault_key: VaultKey, code: Secret) -> Slot:
        """A slot that this recovery code opens."""
        return self.generated_slot(record, vault_key, code, SlotKind.RECOVERY_CODE)

    def generated_slot(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        secret: Secret,
        kind: SlotKind,
        label: str = "",
        slot_id: str = "",
    ) -> Slot:
        """A slot for a secret that was generated, with 128 bits or more: no Argon2id."""
        made = make_slot(
            secret,
            vault_key,
            account_id=record.account_id,
            vault_id=record.vault_id,
            kind=kind,
            kdf=Kdf.for_generated_secret(),
            created=self.milliseconds(),
            label=label,
            slot_id=slot_id,
        )
        return self._proved(made, secret, vault_key)

    def admin_slot(
        self, record: AccountRecord, vault_key: VaultKey, admin: AdminRecord | None
    ) -> Slot:
        """A slot of the admin recovery key; WrongState where there is none."""
        if admin is None or admin.key is None:
            message = "no admin recovery password is set: admin-recovery set"
            raise WrongState(message)
        return make_admin_slot(
            admin.key.public_key,
            vault_key,
            account_id=record.account_id,
            vault_id=record.vault_id,
            created=self.milliseconds(),
        )

    def _proved(self, slot: Slot, secret: Secret, vault_key: VaultKey) -> Slot:
        if slot.open(secret) != vault_key:
            message = "a new slot does not open with its own secret"
            raise Alarm(message)
        return slot

    def kdf(self) -> Kdf:
        """Argon2id as the configuration has it, with a fresh salt."""
        return Kdf.argon2id(self.settings.argon2_memory, self.settings.argon2_passes)

    def new_key(
        self, record: AccountRecord, vault_key: VaultKey, generation: int
    ) -> tuple[PrivateKey, SealedKey]:
        """A new key pair, and its private half sealed in the record's vault."""
        key = PrivateKey.generate(self.settings.curve)
        return key, self.sealed_key(record, vault_key, key, generation)

    def sealed_key(
        self, record: AccountRecord, vault_key: VaultKey, key: PrivateKey, generation: int
    ) -> SealedKey:
        """A private key sealed in the record's vault."""
        ids = (record.account_id, record.vault_id)
        sealed = vault_key.seal(key.der(), *ids, key.public.key_id)
        return SealedKey(key.public.key_id, generation, sealed)


def _check_own_slot(vault: Vault) -> None:
    own = [slot for slot in vault.slots if slot.kind is not SlotKind.ADMIN]
    if not any(slot.state is SlotState.ACTIVE for slot in own):
        message = "the last slot that opens a vault cannot be removed"
        raise WrongState(message)


def check_commitment(vault_key: VaultKey, seal: VaultSeal, slot: Slot) -> None:
    """Alarm unless this is the key of the vault that the signed record names."""
    if not secrets.compare_digest(vault_key.commitment(), seal.commitment):
        message = f"slot {slot.slot_id} opens another vault than the record names"
        raise Alarm(message)
