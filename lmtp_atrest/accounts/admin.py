"""Admin recovery: one key pair of the site, to which accounts seal their vault key if they may.

The seed of the key pair lies in a vault of its own, sealed to the admin recovery password like an
account's vault key to a password. The signed admin record names the public half, that vault and
the policy; accounts name the key that opens them. Every use is in the audit before anything of an
account is opened.
"""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from lmtp_atrest.accounts.accounts import Accounts, check_commitment
from lmtp_atrest.crypto.records import AccountRecord, AdminKey, AdminRecord, VaultSeal
from lmtp_atrest.crypto.slots import (
    Slot,
    SlotKind,
    admin_public_key,
    digest_of,
    make_slot,
)
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, AtRestError, Conflict, WrongSecret, WrongState
from lmtp_atrest.keystore.audit import Audit
from lmtp_atrest.keystore.vaults import Vault
from lmtp_atrest.secret import Secret
from lmtp_atrest.telemetry import logger

ADMIN_ACCOUNT = "admin"  # no account id: those are 32 hex digits
POLICIES = ("allowed", "required", "forbidden")

log = logger("accounts")


@dataclass(frozen=True, slots=True)
class AdminStatus:
    """How far admin recovery reaches; numbers of accounts that hold ciphertext.

    `by_key` is openable by the present key, `by_previous` still by the one before a change.
    `rekey_due`: the next login makes a new vault key, and until then an older copy of the store
    opens with the key that was taken away. `older_copies_until` (milliseconds) is when that was
    last so of an account which no admin key opens now: copies from before stay what they are.
    """

    policy: str
    key_id: str
    previous_key_id: str
    accounts: int
    by_key: int
    by_previous: int
    refused: int
    rekey_due: int
    older_copies_until: int


class AdminRecovery:
    """The admin recovery key and its policy."""

    def __init__(self, accounts: Accounts, audit: Audit) -> None:
        self._accounts = accounts
        self.audit = audit

    def record(self) -> AdminRecord:
        """The signed admin record; Alarm where the pin knows a newer one, or another."""
        accounts = self._accounts
        document, pin = accounts.records.admin_document(), accounts.pins.admin()
        if document is None:
            if pin is not None:
                message = "no admin record, but unlock has seen one"
                raise Alarm(message)
            return AdminRecord(accounts.site_key.site_id, 0, "allowed")
        record = accounts.site_key.public.verify_admin(document)
        if pin is not None and (record.epoch < pin[0] or self._another(record, document, pin)):
            # Read again: a change may have come between the two reads, records before pins.
            document = accounts.records.admin_document() or document
            record = accounts.site_key.public.verify_admin(document)
            if record.epoch < pin[0] or self._another(record, document, pin):
                message = f"the admin record has epoch {record.epoch}, but {pin[0]} was seen"
                raise Alarm(message)
        if pin is None or pin[1] != document:
            accounts.pins.remember_admin(record.epoch, document)
        return record

    def _another(self, record: AdminRecord, document: bytes, pin: tuple[int, bytes]) -> bool:
        if record.epoch != pin[0] or document == pin[1]:
            return False
        # Signed anew by a newer site key, it says the same; a forged pin raises.
        return self._accounts.site_key.public.verify_admin(pin[1]) != record

    def repair(self) -> None:
        """At start: forget vaults of keys and passwords that a crash left behind.

        The vault of an old admin recovery password holds the same seed as that of the new one.
        """
        with self._accounts.writing():
            self._forget_others(self.record())

    # ---- the key

    def set(self, secret: Secret) -> AdminRecord:
        """The first key; WrongState where there is one, or the policy forbids it."""
        record = self.record()
        if record.key is not None:
            message = "an admin recovery password is set already: admin-recovery change"
            raise WrongState(message)
        if record.policy == "forbidden":
            message = "this site's policy forbids admin recovery (recovery.admin)"
            raise WrongState(message)
        self._audit("admin-set")
        with self._accounts.writing():
            return self._commit(record.next(key=self._new_key(VaultKey.generate(), secret)))

    def change_password(self, old: Secret, new: Secret) -> AdminRecord:
        """The same key, sealed to another password. WrongSecret."""
        record = self.record()
        key, seed = self._opened(record, old)
        if key is not record.key:
            message = "this is the password of the key before: finish admin-recovery change"
            raise WrongState(message)
        self._audit("admin-password-changed")
        with self._accounts.writing():
            return self._commit(record.next(key=self._new_key(seed, new)))

    def change_key(self, old: Secret, new: Secret) -> tuple[AdminRecord, int]:
        """A new key, to which all accounts are sealed, and which asks each for a rekey.

        Closed vaults that the key before opens are sealed to the new one too. Returns the record
        and how many accounts could not be changed. A run that was cut short is gone on with by the
        same call: `old` and `new` are the two passwords of then. WrongSecret.
        """
        record = self._with_new_key(old, new)
        key, previous = record.key, record.previous
        assert key is not None and previous is not None  # noqa: S101 - for the type checker
        self._check_goes_on(key, new, "new")
        seed = self._check_goes_on(previous, old, "old")
        found = [
            one for one in self._accounts.all() if one.admin_key == previous.key_id or one.closed
        ]
        left = sum(not self._moved(one, record, seed) for one in found)
        if not left:
            record = self._commit(record.next(previous=None))
        return record, left

    def _with_new_key(self, old: Secret, new: Secret) -> AdminRecord:
        record = self.record()
        if record.previous is not None:
            return record
        self._opened(record, old)
        self._audit("admin-key-changed")
        with self._accounts.writing():
            fresh = self._new_key(VaultKey.generate(), new)
            return self._commit(record.next(key=fresh, previous=record.key))

    def _check_goes_on(self, key: AdminKey, secret: Secret, which: str) -> VaultKey:
        try:
            return self._seed(key, secret)
        except WrongSecret as error:
            message = f"a change of the key is under way, with another {which} password"
            raise WrongState(message) from error

    def _moved(self, account: AccountRecord, record: AdminRecord, seed: VaultKey) -> bool:
        """Seal one account to the present key; False where that cannot be done now."""
        try:
            vault = self._resealed(account, account.seal, record, seed)
            closed = [self._resealed(account, seal, record, seed) for seal in account.closed]
            others = [one for one in closed if one is not None]
            fields: dict[str, Any] = {"others": others, "admin": record}
            if vault is not None and record.key is not None:
                fields.update(admin_key=record.key.key_id, rekey_due=True)
            if vault is not None or others:
                self._accounts.change(account, vault, **fields)
        except AtRestError as error:
            log.error("not sealed to the new key", account=account.account_id, cause=str(error))
            return False
        return True

    def _resealed(
        self, account: AccountRecord, seal: VaultSeal, record: AdminRecord, seed: VaultKey
    ) -> Vault | None:
        """A vault with a slot of the present key in place of one of the key before; None where
        there is none of that."""
        if not seal.vault_id:  # plain, perhaps with closed vaults from before
            return None
        vault = self._accounts.vault(account, seal)
        previous = record.previous.public_key if record.previous else b""
        if not any(slot.public_key == previous for slot in vault.of_kind(SlotKind.ADMIN)):
            return None
        vault_key = self._vault_key(account, seed, seal)
        here = replace(account, vault_id=seal.vault_id)
        rest = vault.without(SlotKind.ADMIN)
        return replace(
            rest, slots=(*rest.slots, self._accounts.admin_slot(here, vault_key, record))
        )

    # ---- opening

    def check(self, secret: Secret) -> None:
        """WrongSecret unless this is an admin recovery password of the site."""
        self._opened(self.record(), secret)

    def open(
        self, account: AccountRecord, secret: Secret, event: str, seal: VaultSeal | None = None
    ) -> VaultKey:
        """The vault key of an account, by the admin recovery password.

        `event` is in the audit, durably, before anything is opened. WrongSecret; WrongState where
        the account has no slot of this key or is frozen, or the policy forbids it.
        """
        record = self.record()
        if account.frozen or record.policy == "forbidden":
            reason = "it is frozen" if account.frozen else "this site's policy forbids it"
            message = f"no admin recovery for {account.names[0]}: {reason}"
            raise WrongState(message)
        key, seed = self._opened(record, secret)
        slots = self._accounts.vault(account, seal).slots
        if not any(slot.public_key == key.public_key for slot in slots):
            message = f"no admin recovery for {account.names[0]}: its owner alone can open it"
            raise WrongState(message)
        self._audit(event, account.account_id)
        return self._vault_key(account, seed, seal)

    def _vault_key(
        self, account: AccountRecord, seed: VaultKey, seal: VaultSeal | None = None
    ) -> VaultKey:
        for slot in self._accounts.vault(account, seal).slots:
            if slot.kind is not SlotKind.ADMIN:
                continue
            vault_key = slot.open_as_admin(seed)
            check_commitment(vault_key, seal or account.seal, slot)
            return vault_key
        message = f"account {account.account_id} has no slot of the admin recovery key"
        raise WrongState(message)

    def _opened(self, record: AdminRecord, secret: Secret) -> tuple[AdminKey, VaultKey]:
        """The key, the present or the previous one, that this password opens, and its seed."""
        if record.key is None:
            message = "no admin recovery password is set"
            raise WrongState(message)
        for key in (record.key, record.previous):
            if key is None:
                continue
            try:
                return key, self._seed(key, secret)
            except WrongSecret:
                continue
        log.warning("wrong admin recovery password")
        message = "this is not the admin recovery password"
        raise WrongSecret(message)

    def _seed(self, key: AdminKey, secret: Secret) -> VaultKey:
        vault = self._accounts.vaults.get(key.vault.vault_id)
        if vault is None or digest_of(vault.slots) != key.vault.slots_digest:
            message = "the vault of the admin recovery key is missing or not what was signed"
            raise Alarm(message)
        (slot,) = vault.slots
        seed = slot.open(secret)
        check_commitment(seed, key.vault, slot)
        if admin_public_key(seed) != key.public_key:
            message = "the admin recovery key is not that of its record"
            raise Alarm(message)
        return seed

    # ---- the policy

    def set_policy(self, policy: str) -> AdminRecord:
        """What recovery.admin says, signed; the same policy again changes nothing."""
        record = self.record()
        if record.epoch and record.policy == policy:
            return record
        self._audit("admin-policy", detail={"policy": policy, "before": record.policy})
        return self._commit(record.next(policy=policy))

    def withdraw(self) -> tuple[AccountRecord, ...]:
        """Where the policy forbids admin recovery: take its slots away; the accounts changed.

        Those of closed vaults go too: with a forgotten password, such mail is lost then.
        Each is asked for a rekey at its next login, after which the old vault key, which an older
        copy of the store may give the administrator, opens nothing new.
        """
        if self.record().policy != "forbidden":
            return ()
        done = []
        for account in self._accounts.all():
            try:
                after = self._without_admin(account)
                if after != account:
                    done.append(after)
            except AtRestError as error:
                log.error("admin slot stays", account=account.account_id, cause=str(error))
        return tuple(done)

    def _without_admin(self, account: AccountRecord) -> AccountRecord:
        closed = self._accounts.closed_to_admin(account)
        if account.admin_key:
            vault = self._accounts.vault(account).without(SlotKind.ADMIN)
            return self._accounts.change(
                account, vault, others=closed, admin_key="", rekey_due=True
            )
        return self._accounts.change(account, others=closed) if closed else account

    def status(self) -> AdminStatus:
        """How far admin recovery reaches now."""
        record = self.record()
        key_id = record.key.key_id if record.key else ""
        previous = record.previous.key_id if record.previous else ""
        found = [one for one in self._accounts.all() if one.holds_ciphertext]
        return AdminStatus(
            policy=record.policy,
            key_id=key_id,
            previous_key_id=previous,
            accounts=len(found),
            by_key=sum(bool(key_id) and one.admin_key == key_id for one in found),
            by_previous=sum(bool(previous) and one.admin_key == previous for one in found),
            refused=sum(one.admin_refused for one in found),
            rekey_due=sum(one.rekey_due for one in found),
            older_copies_until=max(
                (one.vault_key_since for one in found if not one.admin_key), default=0
            ),
        )

    # ---- shared

    def _new_key(self, seed: VaultKey, secret: Secret) -> AdminKey:
        """Call it within `writing`, together with the commit of the record that names it."""
        vault_id = secrets.token_hex(16)
        slot = self._slot(seed, vault_id, secret)
        if slot.open(secret) != seed:
            message = "the admin recovery slot does not open with its own password"
            raise Alarm(message)
        # Before the record that names it; one that no record names hurts nobody.
        self._accounts.vaults.put(Vault(vault_id, ADMIN_ACCOUNT, (slot,), ()))
        seal = VaultSeal(vault_id, seed.commitment(), digest_of((slot,)))
        return AdminKey(admin_public_key(seed), seal)

    def _slot(self, seed: VaultKey, vault_id: str, secret: Secret) -> Slot:
        return make_slot(
            secret,
            seed,
            account_id=ADMIN_ACCOUNT,
            vault_id=vault_id,
            kind=SlotKind.PASSWORD,
            kdf=self._accounts.kdf(),
            created=self._accounts.milliseconds(),
        )

    def _audit(self, event: str, account_id: str = "", **more: Any) -> None:
        self.audit.append(self._accounts.milliseconds(), event, account_id, **more)

    def _commit(self, record: AdminRecord) -> AdminRecord:
        accounts = self._accounts
        document = accounts.site_key.sign_admin(record)
        with accounts.writing():
            present = accounts.records.admin()
            if present is not None and present.epoch != record.epoch - 1:
                message = "the admin record was changed by somebody else"
                raise Conflict(message)
            accounts.records.put_admin(record.epoch, document)
            accounts.pins.remember_admin(record.epoch, document)
            self._forget_others(record)
        return record

    def _forget_others(self, record: AdminRecord) -> None:
        """Drop the vaults of admin recovery that this record, the newest, does not name."""
        vaults = self._accounts.vaults
        named = {key.vault.vault_id for key in (record.key, record.previous) if key is not None}
        try:
            gone = [one for one in vaults.ids_of(ADMIN_ACCOUNT) if one not in named]
            if gone:
                vaults.drop(gone)
        except AtRestError as error:
            # The change itself is done. The next one, or the next start, tries again.
            log.error("a vault of before is still there", cause=str(error))
