"""Databases of earlier versions, with data in them, go on opening after an upgrade."""

import json
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from lmtp_atrest.accounts import Accounts, AdminRecovery, Generations
from lmtp_atrest.crypto.records import SiteKey, State
from lmtp_atrest.errors import WrongSecret
from lmtp_atrest.keystore import store as store_module
from lmtp_atrest.keystore.audit import Audit
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.store import PINS, RECORDS, VAULTS, Kind, Store, WrongRevision
from lmtp_atrest.keystore.vaults import Vaults
from lmtp_atrest.secret import Secret
from tests.sites import CHEAP

VECTORS = Path(__file__).parents[1] / "vectors/keystore"
ALICE, BOB = "alice@example.org", "bob@example.org"
ACCOUNT, PLAIN = "a1" * 16, "c3" * 16
PASSWORD = Secret(b"correct horse battery staple")


def first(kind: Kind, directory: Path) -> Store:
    """A store as the first version of its schema has it."""
    made = Store(kind, f"sqlite:///{directory / kind.name}.db")
    base = Path(store_module.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(base))
    config.set_main_option("version_locations", str(base / kind.name))
    config.set_main_option("path_separator", "newline")
    with made._engine.begin() as connection:
        config.attributes.update(connection=connection, metadata=kind.metadata)
        command.upgrade(config, f"{kind.name}_0001")
    return made


def insert(store: Store, table: str, **row: object) -> None:
    columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    with store.transaction() as connection:
        connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), row)


def fill(records: Store, vaults: Store, pins: Store) -> None:
    """Alice encrypted, and Bob's account committed, but not yet where delivery would see it."""
    names = ("account-record-first", "account-record-first-plain", "admin-record-first")
    document, plain, admin = ((VECTORS / name).read_bytes() for name in names)
    insert(records, "accounts", account_id=ACCOUNT, epoch=3, document=document)
    insert(records, "site", what="admin", epoch=1, document=admin)
    insert(pins, "seen", account_id=ACCOUNT, epoch=3, document=document)
    for name in (ALICE, "info@example.org"):
        insert(records, "names", name=name, account_id=ACCOUNT)
        insert(pins, "seen_names", name=name, account_id=ACCOUNT)
    insert(vaults, "heads", account_id=ACCOUNT, epoch=3)
    insert(vaults, "heads", account_id=PLAIN, epoch=1)
    insert(vaults, "outbox", account_id=PLAIN, document=plain)
    fill_vault(vaults)


def fill_vault(vaults: Store) -> None:
    row = json.loads((VECTORS / "slots.json").read_text())[0]
    key = json.loads((VECTORS / "vault.json").read_text())
    slot, kdf = row["slot"], row["slot"].pop("kdf")
    insert(vaults, "vaults", vault_id=key["vault_id"], account_id=ACCOUNT)
    insert(
        vaults,
        "private_keys",
        vault_id=key["vault_id"],
        key_id=key["key_id"],
        generation=1,
        sealed=bytes.fromhex(key["sealed"]),
    )
    slot["public_key"], slot["sealed"] = (
        bytes.fromhex(slot[name]) for name in ("public_key", "sealed")
    )
    insert(
        vaults,
        "slots",
        kdf_memory=kdf["memory"],
        kdf_passes=kdf["passes"],
        kdf_salt=bytes.fromhex(kdf["salt"]),
        digest=bytes.fromhex(row["digest"]),
        **slot,
    )


def test_stores_of_the_first_schema_open_after_the_upgrade(tmp_path: Path) -> None:
    stores = [first(kind, tmp_path) for kind in (RECORDS, VAULTS, PINS)]
    fill(*stores)
    for store in stores[1:]:
        with pytest.raises(WrongRevision, match="keystore upgrade"):
            store.check_revision()
    for store in stores:
        store.upgrade()
        store.check_revision()
    site_key = SiteKey("51" * 16, (Secret(bytes(range(32))),))
    accounts = Accounts(
        Records(stores[0], site_key.public),
        Vaults(stores[1]),
        Pins(stores[2]),
        site_key,
        CHEAP,
    )
    accounts.repair()
    admin = AdminRecovery(accounts, Audit(stores[1]))
    admin.repair()
    record, bob = accounts.existing(ALICE), accounts.existing(BOB)
    assert (bob.state, list(accounts.vaults.unfinished())) == (State.PLAIN, [])
    vault_key = accounts.open(record, PASSWORD).vault_key
    pinned = json.loads((VECTORS / "vault.json").read_text())
    (private,) = accounts.private_keys(record, vault_key)
    assert private.der().reveal().hex() == pinned["private_key"]
    with pytest.raises(WrongSecret):
        accounts.open(record, Secret(b"guess"))
    # And what came later works on it.
    assert admin.record().epoch == 1
    key = admin.set(Secret(b"admin")).key
    after, _ = Generations(accounts).rekey(record, vault_key)
    assert key and after.key_ids[1:] == record.key_ids
    assert [entry.event for entry in admin.audit.entries()] == ["admin-set"]
    for store in stores:
        store.close()
