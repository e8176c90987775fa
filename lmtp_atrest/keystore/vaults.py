"""The vaults store: slots, sealed private keys and the order of all changes. Only unlock opens it.

Nothing in here opens a vault without a secret. A change commits here first, together with the
signed record it leads to (`outbox`); the records store follows. After a crash between the two,
`unfinished()` names what the records store still lacks, and repeating the change is harmless.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from lmtp_atrest.crypto.records import SignedRecord
from lmtp_atrest.crypto.slots import Kdf, Slot, SlotKind, SlotState
from lmtp_atrest.errors import Conflict, Damaged
from lmtp_atrest.keystore.schema import heads, outbox, private_keys, slot_uses, slots, vaults
from lmtp_atrest.keystore.store import Store

# Made once: each login reads a vault several times.
_VAULT = select(vaults).where(vaults.c.vault_id == bindparam("vault_id"))
_SLOTS = select(slots).where(slots.c.vault_id == bindparam("vault_id")).order_by(slots.c.slot_id)
_KEYS = (
    select(private_keys)
    .where(private_keys.c.vault_id == bindparam("vault_id"))
    .order_by(private_keys.c.generation.desc())
)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """One generation of an account's private key, sealed under the vault key."""

    key_id: bytes
    generation: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Vault:
    """A vault as it is stored; keys newest first."""

    vault_id: str
    account_id: str
    slots: tuple[Slot, ...]
    keys: tuple[SealedKey, ...]

    def of_kind(self, kind: SlotKind) -> tuple[Slot, ...]:
        """The slots of this kind."""
        return tuple(slot for slot in self.slots if slot.kind is kind)

    def without(self, kind: SlotKind) -> "Vault":
        """The same vault without the slots of this kind."""
        return replace(self, slots=tuple(s for s in self.slots if s.kind is not kind))


class Vaults:
    """Vaults by id, and changes that are compared and set on the account's epoch."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, vault_id: str) -> Vault | None:
        """A vault, closed ones too; Damaged where a slot does not fit its own digest."""
        with self.store.reading() as connection:
            return _read(connection, vault_id)

    def change(
        self,
        signed: SignedRecord,
        vault: Vault | None = None,
        drop: Sequence[str] = (),
        others: Sequence[Vault] = (),
    ) -> None:
        """Commit one change of an account, durably and as a whole.

        `signed` is the record it leads to, `vault` what its vault holds from now on (None: as it
        was), `others` are closed ones that change with it, `drop` names vaults whose keys `vault`
        holds too. Conflict unless the account stands at the epoch before.
        """
        record = signed.record
        with self.store.transaction() as connection:
            self._advance(connection, record.account_id, record.epoch)
            for one in (*([vault] if vault else []), *others):
                _replace(connection, one)
            _drop(connection, drop)
            connection.execute(delete(outbox).where(outbox.c.account_id == record.account_id))
            connection.execute(
                insert(outbox).values(account_id=record.account_id, document=signed.document)
            )

    def ids_of(self, account_id: str) -> list[str]:
        """The ids of all vaults of an account, closed ones too."""
        with self.store.reading() as connection:
            rows = connection.execute(
                select(vaults.c.vault_id).where(vaults.c.account_id == account_id)
            ).all()
        return [row.vault_id for row in rows]

    def put(self, vault: Vault) -> None:
        """Keep a vault that belongs to no account: that of the admin recovery key."""
        with self.store.transaction() as connection:
            _replace(connection, vault)

    def drop(self, vault_ids: Sequence[str]) -> None:
        """Forget such vaults."""
        with self.store.transaction() as connection:
            _drop(connection, vault_ids)

    def use(self, slot_id: str, day: str) -> None:
        """Note the day on which a slot was used last."""
        with self.store.transaction() as connection:
            connection.execute(delete(slot_uses).where(slot_uses.c.slot_id == slot_id))
            connection.execute(insert(slot_uses).values(slot_id=slot_id, day=day))

    def uses(self, slot_ids: Sequence[str]) -> dict[str, str]:
        """The days on which these slots were used last."""
        with self.store.reading() as connection:
            rows = connection.execute(
                select(slot_uses).where(slot_uses.c.slot_id.in_(slot_ids))
            ).all()
        return {row.slot_id: row.day for row in rows}

    def close(self, vault_id: str, closed_at: int) -> None:
        """Mark a vault that no login opens any more; `closed_at` in milliseconds since 1970."""
        with self.store.transaction() as connection:
            connection.execute(
                update(vaults)
                .where(vaults.c.vault_id == vault_id)
                .where(vaults.c.closed_at.is_(None))
                .values(closed_at=closed_at)
            )

    def purge(self, closed_before: int) -> int:
        """Forget vaults closed before this time (milliseconds since 1970); returns how many."""
        old = select(vaults.c.vault_id).where(vaults.c.closed_at < closed_before)
        with self.store.transaction() as connection:
            for table in (slots, private_keys):
                connection.execute(delete(table).where(table.c.vault_id.in_(old)))
            return connection.execute(
                delete(vaults).where(vaults.c.closed_at < closed_before)
            ).rowcount

    def finished(self, signed: SignedRecord) -> None:
        """The records store has this record too."""
        with self.store.transaction() as connection:
            connection.execute(
                delete(outbox)
                .where(outbox.c.account_id == signed.record.account_id)
                .where(outbox.c.document == signed.document)
            )

    def unfinished(self) -> Iterator[bytes]:
        """Documents that the records store may lack."""
        with self.store.reading() as connection:
            rows = connection.execute(select(outbox.c.document)).all()
        return iter([row.document for row in rows])

    def epoch(self, account_id: str) -> int | None:
        """The epoch of the newest change."""
        with self.store.reading() as connection:
            return connection.execute(
                select(heads.c.epoch).where(heads.c.account_id == account_id)
            ).scalar()

    def set_epoch(self, account_id: str, epoch: int) -> None:
        """After a restore that the operator accepted: go on from here."""
        with self.store.transaction() as connection:
            connection.execute(delete(heads).where(heads.c.account_id == account_id))
            connection.execute(insert(heads).values(account_id=account_id, epoch=epoch))

    def _advance(self, connection: Connection, account_id: str, epoch: int) -> None:
        old = connection.execute(
            select(heads.c.epoch).where(heads.c.account_id == account_id)
        ).scalar()
        if old is None:
            connection.execute(insert(heads).values(account_id=account_id, epoch=epoch))
        elif old == epoch - 1:
            connection.execute(
                update(heads).where(heads.c.account_id == account_id).values(epoch=epoch)
            )
        else:
            message = f"account {account_id} is at epoch {old}, not {epoch - 1}"
            raise Conflict(message)


def _read(connection: Connection, vault_id: str) -> Vault | None:
    row = connection.execute(_VAULT, {"vault_id": vault_id}).first()
    slot_rows = connection.execute(_SLOTS, {"vault_id": vault_id})
    key_rows = connection.execute(_KEYS, {"vault_id": vault_id})
    if row is None:  # said only now: a vault that is not there costs the same queries
        return None
    return Vault(
        vault_id,
        row.account_id,
        tuple(_slot(slot_row) for slot_row in slot_rows),
        tuple(SealedKey(bytes.fromhex(k.key_id), k.generation, k.sealed) for k in key_rows),
    )


def _replace(connection: Connection, vault: Vault) -> None:
    """Make the rows of a vault equal to this one, and read them back before they commit."""
    if not connection.execute(select(vaults).where(vaults.c.vault_id == vault.vault_id)).first():
        connection.execute(
            insert(vaults).values(vault_id=vault.vault_id, account_id=vault.account_id)
        )
    connection.execute(delete(slots).where(slots.c.vault_id == vault.vault_id))
    connection.execute(delete(private_keys).where(private_keys.c.vault_id == vault.vault_id))
    connection.execute(insert(slots), [_slot_row(slot) for slot in vault.slots])
    for key in vault.keys:
        connection.execute(
            insert(private_keys).values(
                vault_id=vault.vault_id,
                key_id=key.key_id.hex(),
                generation=key.generation,
                sealed=key.sealed,
            )
        )
    found = _read(connection, vault.vault_id)
    if found is None or {*found.slots} != {*vault.slots} or {*found.keys} != {*vault.keys}:
        message = f"vault {vault.vault_id} does not read back as it was written"
        raise Damaged(message)


def _drop(connection: Connection, vault_ids: Sequence[str]) -> None:
    for table in (slots, private_keys, vaults):
        connection.execute(delete(table).where(table.c.vault_id.in_(vault_ids)))


def _slot_row(slot: Slot) -> dict[str, object]:
    return {
        "slot_id": slot.slot_id,
        "vault_id": slot.vault_id,
        "account_id": slot.account_id,
        "kind": slot.kind.value,
        "label": slot.label,
        "state": slot.state.value,
        "created": slot.created,
        "suite": slot.suite,
        "kdf_memory": slot.kdf.memory,
        "kdf_passes": slot.kdf.passes,
        "kdf_salt": slot.kdf.salt,
        "public_key": slot.public_key,
        "sealed": slot.sealed,
        "digest": slot.digest(),
    }


def _slot(row: object) -> Slot:
    fields = row._mapping  # type: ignore[attr-defined]
    try:
        slot = Slot(
            slot_id=fields["slot_id"],
            account_id=fields["account_id"],
            vault_id=fields["vault_id"],
            kind=SlotKind(fields["kind"]),
            label=fields["label"],
            state=SlotState(fields["state"]),
            created=fields["created"],
            suite=fields["suite"],
            kdf=Kdf(fields["kdf_memory"], fields["kdf_passes"], fields["kdf_salt"]),
            public_key=fields["public_key"],
            sealed=fields["sealed"],
        )
        damaged = slot.digest() != fields["digest"]
    except (ValueError, TypeError, AttributeError) as error:
        message = f"slot {fields['slot_id']} is not a slot"
        raise Damaged(message) from error
    if damaged:
        message = f"slot {fields['slot_id']} does not fit its digest"
        raise Damaged(message)
    return slot
