"""Digests of rows, for a backup manifest: what a restored store must hold, without what it holds.

Left out are rows that change without anybody's doing anything to the keys: when a slot was used
last, notices, the audit, and the outbox.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Table, select

from lmtp_atrest.crypto.records import canonical
from lmtp_atrest.keystore.schema import accounts, private_keys, site, slots, vaults
from lmtp_atrest.keystore.store import Store


def account_rows(records: Store, vault_store: Store, account_id: str) -> dict[str, str]:
    """SHA-256 of each row of an account, closed vaults too, by table and primary key."""
    record = _digests(records, accounts, accounts.c.account_id == account_id)
    return {**dict(record), **_vault_rows(vault_store, vaults.c.account_id == account_id)}


def site_rows(records: Store, vault_store: Store, vault_ids: Iterable[str]) -> dict[str, str]:
    """The same for the admin record, and these vaults of the keys that it names."""
    admin = _digests(records, site, site.c.what.is_not(None))
    return {**dict(admin), **_vault_rows(vault_store, vaults.c.vault_id.in_(list(vault_ids)))}


def _vault_rows(store: Store, wanted: ColumnElement[bool]) -> dict[str, str]:
    ids = select(vaults.c.vault_id).where(wanted)
    found = dict(_digests(store, vaults, wanted))
    for table in (slots, private_keys):
        found |= _digests(store, table, table.c.vault_id.in_(ids))
    return found


def _digests(store: Store, table: Table, wanted: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    with store.reading() as connection:
        rows = connection.execute(select(table).where(wanted)).mappings().all()
    for row in rows:
        keys = "/".join(str(row[column.name]) for column in table.primary_key)
        text = canonical({name: _plain(value) for name, value in row.items()})
        yield f"{table.name}/{keys}", hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
