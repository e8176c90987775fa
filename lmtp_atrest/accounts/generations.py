"""Key pairs and vaults that follow each other: rekey, rotate, reset, join, leave, freeze."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmtp_atrest.accounts.accounts import Accounts
from lmtp_atrest.accounts.handout import has_room
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.records import AccountRecord, AdminRecord, State, VaultSeal
from lmtp_atrest.crypto.slots import Slot, SlotKind
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, UsageError, WrongState
from lmtp_atrest.keystore.vaults import SealedKey
from lmtp_atrest.secret import Secret


class Generations:
    """Changes of keys. `record` was read by the caller; Conflict where it is no longer true."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def rekey(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        slots: Sequence[Slot] | None = None,
        **fields: Any,
    ) -> tuple[AccountRecord, VaultKey]:
        """A new vault key for all slots, all private keys under it, and a new key pair.

        One secret is enough: the other slots take the new vault key by their public keys. `slots`
        are those that stay. Where a login could not carry one more key there is no new pair; the
        new vault key is what a rekey is for.
        """
        accounts, fresh = self._accounts, VaultKey.generate()
        vault, keys = accounts.vault(record), accounts.private_keys(record, vault_key)
        kept = [
            accounts.sealed_key(record, fresh, key, sealed.generation)
            for key, sealed in zip(keys, vault.keys, strict=True)
        ]
        new = self._next_key(record, fresh, keys, vault.keys)
        if new is not None:
            key, sealed = new
            kept.insert(0, sealed)
            fields["public_key"] = key.public.spki
            fields["key_ids"] = (key.public.key_id.hex(), *record.key_ids)
        staying = vault.slots if slots is None else slots
        resealed = tuple(slot.resealed(fresh) for slot in staying)
        after = accounts.change(
            record,
            replace(vault, slots=resealed, keys=tuple(kept)),
            vault_commitment=fresh.commitment(),
            vault_key_since=accounts.milliseconds(),
            rekey_due=False,
            **fields,
        )
        return after, fresh

    def _next_key(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        keys: Sequence[PrivateKey],
        sealed: Sequence[SealedKey],
    ) -> tuple[PrivateKey, SealedKey] | None:
        generation = max(one.generation for one in sealed) + 1
        key, new = self._accounts.new_key(record, vault_key, generation)
        return (key, new) if has_room([key, *keys]) else None

    def rotate(
        self, record: AccountRecord, vault_key: VaultKey, *, compromised: bool = False
    ) -> tuple[AccountRecord, VaultKey]:
        """A rekey that must bring a new key pair; WrongState where a login could not carry it.

        `compromised` also marks all mail for the conversion to encrypt anew.
        """
        keys = self._accounts.private_keys(record, vault_key)
        if not has_room([PrivateKey.generate(self._accounts.settings.curve), *keys]):
            message = (
                f"{len(keys)} keys are as many as a login to Dovecot can carry: encrypt the mail "
                "anew to the present key first, after which old ones can go"
            )
            raise WrongState(message)
        return self.rekey(record, vault_key, reencrypt=record.reencrypt or compromised)

    def reset(
        self,
        record: AccountRecord,
        secret: Secret,
        code: Secret | None = None,
        admin: AdminRecord | None = None,
    ) -> AccountRecord:
        """A new vault and key pair for new mail; the old vault stays as it is, closed.

        WrongState unless the account is encrypted.
        """
        check_encrypted(record)
        return self._accounts.new_vault(record, secret, code, admin)

    def join(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        seal: VaultSeal,
        old_key: VaultKey,
        *,
        accept_admin: bool = False,
    ) -> AccountRecord:
        """Bring a closed vault's private keys into the present vault; the old slots then go.

        `old_key` opens the vault that `seal` names. UsageError where that would give the
        administrator a way into mail that had none, unless `accept_admin`; WrongState where a
        login could not carry all the keys.
        """
        accounts = self._accounts
        vault, old = accounts.vault(record), accounts.vault(record, seal)
        had = any(slot.kind is SlotKind.ADMIN for slot in old.slots)
        if record.admin_key and not had and not accept_admin:
            message = (
                "the administrator's recovery password opens the present mail, and did not open "
                "this older mail: joining gives it that way in; say that this is wanted"
            )
            raise UsageError(message)
        keys = accounts.private_keys(record, vault_key)
        joined = accounts.private_keys(record, old_key, seal)
        if not has_room([*keys, *joined]):
            message = f"{len(keys) + len(joined)} keys are more than a login can carry"
            raise WrongState(message)
        sealed = [
            accounts.sealed_key(record, vault_key, key, one.generation)
            for key, one in zip(joined, old.keys, strict=True)
        ]
        merged = _by_generation([*vault.keys, *sealed])
        for one in merged:  # what cannot be read again must not replace what can
            vault_key.unseal(one.sealed, record.account_id, record.vault_id, one.key_id)
        return accounts.change(
            record,
            replace(vault, keys=merged),
            drop=[seal.vault_id],
            key_ids=tuple(one.key_id.hex() for one in merged),
            closed=tuple(other for other in record.closed if other != seal),
        )

    def leave(self, record: AccountRecord) -> AccountRecord:
        """From now on mail is stored plain; keys are still handed out. WrongState, else.

        The account becomes plain when a conversion has found no ciphertext any more.
        """
        check_encrypted(record)
        return self._accounts.change(record, state=State.LEAVING)

    def return_(self, record: AccountRecord) -> AccountRecord:
        """Encrypt again after all, while the account is leaving; WrongState otherwise."""
        if record.state is not State.LEAVING:
            message = f"{record.names[0]} is {record.state.value}, not leaving"
            raise WrongState(message)
        return self._accounts.change(record, state=State.ENCRYPTED)

    def become_plain(self, record: AccountRecord) -> AccountRecord:
        """The end of leaving: no message is encrypted any more. WrongState, else.

        The vault is closed and kept: what a backup brings back can still be opened by a join.
        """
        if record.state is not State.LEAVING:
            message = f"{record.names[0]} is {record.state.value}, not leaving"
            raise WrongState(message)
        return self._accounts.change(
            record,
            state=State.PLAIN,
            public_key=b"",
            key_ids=(),
            vault_id="",
            vault_commitment=b"",
            slots_digest=b"",
            closed=(record.seal, *record.closed),
            admin_key="",
            rekey_due=False,
            reencrypt=False,
        )

    def reencrypted(self, record: AccountRecord) -> AccountRecord:
        """All mail is sealed to the present key."""
        return self._accounts.change(record, reencrypt=False)

    def freeze(self, record: AccountRecord) -> AccountRecord:
        """No vault opens until `thaw`; mail goes on arriving encrypted. Twice is once."""
        if not record.holds_ciphertext:
            message = f"{record.names[0]} is {record.state.value}: there is nothing to freeze"
            raise WrongState(message)
        return record if record.frozen else self._accounts.change(record, frozen=True)

    def thaw(self, record: AccountRecord) -> AccountRecord:
        """Vaults open again. The caller has checked a secret that the site asks for."""
        return self._accounts.change(record, frozen=False) if record.frozen else record

    def suspend(self, record: AccountRecord, *, suspended: bool) -> AccountRecord:
        """Take app passwords from somebody whom the site no longer lets in, or give them back."""
        if record.suspended == suspended:
            return record
        return self._accounts.change(record, suspended=suspended)


def check_encrypted(record: AccountRecord) -> None:
    """WrongState unless new mail is encrypted to this account's own key pair."""
    if record.state is not State.ENCRYPTED:
        message = f"{record.names[0]} is {record.state.value}, not encrypted"
        raise WrongState(message)
    if record.has_own_certificates:
        message = (
            f"{record.names[0]} encrypts to certificates of its owner ({record.kind}): "
            "`account key --remove` first"
        )
        raise WrongState(message)


def _by_generation(keys: Sequence[SealedKey]) -> tuple[SealedKey, ...]:
    ordered = sorted(keys, key=lambda one: one.generation, reverse=True)
    if len({one.generation for one in ordered}) != len(ordered):
        message = "two private keys of one generation"
        raise Alarm(message)
    return tuple(ordered)
