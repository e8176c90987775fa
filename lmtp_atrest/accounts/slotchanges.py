"""Slots come and go: passwords, recovery codes, app passwords, and what a login tidies up.

A new slot is made, opened once with its own secret, written and read back in the same commit that
takes an old one away; so at every moment, and after every crash, a secret that its holder was told
to use opens the vault.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from lmtp_atrest.accounts.accounts import Accounts, Opened
from lmtp_atrest.accounts.generations import Generations, check_encrypted
from lmtp_atrest.crypto import app_password
from lmtp_atrest.crypto.app_password import AppPassword
from lmtp_atrest.crypto.records import AccountRecord, AdminRecord
from lmtp_atrest.crypto.slots import SLOT_ID_BYTES, Slot, SlotKind, SlotState
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import AtRestError, Conflict, NotFound, WrongState
from lmtp_atrest.keystore.vaults import Vault
from lmtp_atrest.secret import Secret
from lmtp_atrest.telemetry import logger

APP_PASSWORDS_LIMIT = 20

log = logger("accounts")


class SlotChanges:
    """Changes of slots. `record` was read by the caller; Conflict where it is no longer true."""

    def __init__(self, accounts: Accounts, generations: Generations) -> None:
        self._accounts = accounts
        self._generations = generations

    # ---- passwords

    def begin_password(
        self, record: AccountRecord, vault_key: VaultKey, new: Secret
    ) -> AccountRecord:
        """Both passwords open the vault from now on; an earlier pending one goes."""
        vault = self._vault_of(record, vault_key)
        pending = self._accounts.password_slot(record, vault_key, new, SlotState.PENDING)
        slots = (*_without_pending(vault.slots), pending)
        return self._accounts.change(record, replace(vault, slots=slots))

    def abort_password(self, record: AccountRecord) -> AccountRecord:
        """The pending password goes; WrongState where there is none."""
        vault = self._accounts.vault(record)
        slots = _without_pending(vault.slots)
        if len(slots) == len(vault.slots):
            message = f"{record.names[0]} has no password change under way"
            raise WrongState(message)
        return self._accounts.change(record, replace(vault, slots=slots))

    def replace_password(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        new: Secret,
        code: Secret | None = None,
        *,
        compromised: bool = False,
    ) -> AccountRecord:
        """This password takes the place of all others, and `code` that of the recovery code.

        `compromised` says that somebody may know what opened the vault before: a rekey follows.
        """
        vault = self._vault_of(record, vault_key)
        slots = _without_kind(vault.slots, SlotKind.PASSWORD)
        slots.append(self._accounts.password_slot(record, vault_key, new))
        if code is not None:
            slots = _without_kind(slots, SlotKind.RECOVERY_CODE)
            slots.append(self._accounts.code_slot(record, vault_key, code))
        if compromised:
            return self._generations.rekey(record, vault_key, slots)[0]
        return self._accounts.change(record, replace(vault, slots=tuple(slots)))

    # ---- recovery code

    def replace_code(
        self, record: AccountRecord, vault_key: VaultKey, code: Secret
    ) -> AccountRecord:
        """This recovery code counts from now on, and no earlier one."""
        vault = self._vault_of(record, vault_key)
        slots = _without_kind(vault.slots, SlotKind.RECOVERY_CODE)
        slots.append(self._accounts.code_slot(record, vault_key, code))
        return self._accounts.change(record, replace(vault, slots=tuple(slots)))

    # ---- app passwords

    def add_app_password(
        self, record: AccountRecord, vault_key: VaultKey, label: str
    ) -> tuple[AccountRecord, AppPassword]:
        """A new app password. WrongState where there are too many, or one with this label."""
        check_encrypted(record)
        vault = self._vault_of(record, vault_key)
        present = [slot for slot in vault.slots if slot.kind is SlotKind.APP_PASSWORD]
        if len(present) >= APP_PASSWORDS_LIMIT or any(slot.label == label for slot in present):
            message = (
                f"there is an app password {label!r} already, or {APP_PASSWORDS_LIMIT} of them"
            )
            raise WrongState(message)
        made = app_password.generate()
        while any(slot.slot_id.startswith(made.handle) for slot in present):
            made = app_password.generate()
        # The handle begins the slot's id, so that a login tries this slot and no other.
        slot_id = made.handle + secrets.token_hex(SLOT_ID_BYTES)[len(made.handle) :]
        slot = self._accounts.generated_slot(
            record, vault_key, made.secret, SlotKind.APP_PASSWORD, label, slot_id
        )
        after = self._accounts.change(record, replace(vault, slots=(*vault.slots, slot)))
        return after, made

    def remove_app_password(
        self, record: AccountRecord, handle: str, vault_key: VaultKey | None = None
    ) -> AccountRecord:
        """The app password of this handle opens nothing any more; NotFound.

        A rekey follows: at once where the vault is open, else at the next login.
        """
        vault = self._accounts.vault(record)
        slots = tuple(slot for slot in vault.slots if not _is_app_password(slot, handle))
        if len(slots) == len(vault.slots):
            message = f"{record.names[0]} has no app password {handle}"
            raise NotFound(message)
        if vault_key is not None:
            return self._generations.rekey(record, vault_key, slots)[0]
        return self._accounts.change(record, replace(vault, slots=slots), rekey_due=True)

    # ---- admin recovery

    def set_admin_slot(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        admin: AdminRecord | None,
        *,
        wanted: bool,
    ) -> AccountRecord:
        """Give the admin recovery key a slot, or take it away (a rekey follows at once).

        Taken away, it goes from closed vaults too. WrongState where the policy leaves no choice.
        """
        if admin is not None and admin.policy == ("forbidden" if wanted else "required"):
            message = f"admin recovery is {admin.policy} at this site: there is nothing to choose"
            raise WrongState(message)
        if not wanted:
            return self._refuse_admin(record, vault_key)
        vault = self._vault_of(record, vault_key)
        slots = _without_kind(vault.slots, SlotKind.ADMIN)
        slots.append(self._accounts.admin_slot(record, vault_key, admin))
        key_id = admin.key.key_id if admin and admin.key else ""
        fields: dict[str, Any] = {"admin_key": key_id, "admin_refused": False, "admin": admin}
        if record.admin_key not in ("", key_id):
            # A change of the key is under way; what the one before opened must not open new mail.
            return self._generations.rekey(record, vault_key, slots, **fields)[0]
        return self._accounts.change(record, replace(vault, slots=tuple(slots)), **fields)

    def _refuse_admin(self, record: AccountRecord, vault_key: VaultKey) -> AccountRecord:
        vault, closed = self._vault_of(record, vault_key), self._accounts.closed_to_admin(record)
        fields: dict[str, Any] = {"admin_key": "", "admin_refused": True, "others": closed}
        if not record.admin_key:
            return self._accounts.change(record, **fields)
        slots = _without_kind(vault.slots, SlotKind.ADMIN)
        return self._generations.rekey(record, vault_key, slots, **fields)[0]

    def _vault_of(self, record: AccountRecord, vault_key: VaultKey) -> Vault:
        """The vault that this key opens; Conflict where the key is one of before a rekey.

        A slot made with it would open nothing, and the one that it replaces would be gone.
        """
        vault = self._accounts.vault(record)
        if not secrets.compare_digest(vault_key.commitment(), record.vault_commitment):
            message = f"the vault of account {record.account_id} got another key meanwhile"
            raise Conflict(message)
        return vault

    # ---- what a login tidies up

    def settle(
        self,
        record: AccountRecord,
        opened: Opened,
        secret: Secret,
        admin: Callable[[], AdminRecord | None],
        *,
        verified: bool,
    ) -> tuple[AccountRecord, VaultKey]:
        """What is due once a secret has opened the vault; best effort, never fails a login.

        The site accepted a pending password (`verified`): it takes the place of the old one.
        Argon2id parameters rise with the configuration. An admin slot that the policy requires is
        made. A rekey that was asked for is done.
        """
        try:
            return self._settle(record, opened, secret, admin(), verified=verified)
        except AtRestError as error:
            log.error("not settled at login", account=record.account_id, cause=str(error))
            return record, opened.vault_key

    def _settle(
        self,
        record: AccountRecord,
        opened: Opened,
        secret: Secret,
        admin: AdminRecord | None,
        *,
        verified: bool,
    ) -> tuple[AccountRecord, VaultKey]:
        vault, vault_key = self._accounts.vault(record), opened.vault_key
        slots = list(vault.slots)
        fields: dict[str, Any] = {}
        if opened.slot.kind is SlotKind.PASSWORD:
            slots = self._settled_password(record, slots, opened, secret, verified=verified)
        wanted = self._accounts.admin_key_for(record, admin)
        if admin is not None and admin.policy == "required" and wanted != record.admin_key:
            slots = _without_kind(slots, SlotKind.ADMIN)
            slots.append(self._accounts.admin_slot(record, vault_key, admin))
            fields.update(admin_key=wanted, admin=admin)
        # An admin slot that gives way is one of a key that is being changed: as after the change.
        if record.rekey_due or (fields and record.admin_key):
            return self._generations.rekey(record, vault_key, slots, **fields)
        if tuple(slots) == vault.slots:
            return record, vault_key
        after = self._accounts.change(record, replace(vault, slots=tuple(slots)), **fields)
        return after, vault_key

    def _settled_password(
        self,
        record: AccountRecord,
        slots: list[Slot],
        opened: Opened,
        secret: Secret,
        *,
        verified: bool,
    ) -> list[Slot]:
        proved = verified and opened.slot.state is SlotState.PENDING
        if not proved and not self._weaker(opened.slot):
            return slots
        state = SlotState.ACTIVE if proved else opened.slot.state
        if self._weaker(opened.slot):
            fresh = self._accounts.password_slot(record, opened.vault_key, secret, state)
        else:
            fresh = replace(opened.slot, state=state)
        if proved:
            log.info("password change completed", account=record.account_id)
            return [*_without_kind(slots, SlotKind.PASSWORD), fresh]
        return [fresh if slot == opened.slot else slot for slot in slots]

    def _weaker(self, slot: Slot) -> bool:
        """Whether the configuration asks for more than this slot was made with."""
        settings, kdf = self._accounts.settings, slot.kdf
        return (kdf.memory, kdf.passes) != (settings.argon2_memory, settings.argon2_passes) and (
            kdf.memory <= settings.argon2_memory and kdf.passes <= settings.argon2_passes
        )


def _without_kind(slots: Iterable[Slot], kind: SlotKind) -> list[Slot]:
    return [slot for slot in slots if slot.kind is not kind]


def _without_pending(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    return tuple(slot for slot in slots if slot.state is not SlotState.PENDING)


def _is_app_password(slot: Slot, handle: str) -> bool:
    return slot.kind is SlotKind.APP_PASSWORD and slot.slot_id.startswith(handle)
