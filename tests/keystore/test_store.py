import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from lmtp_atrest.keystore import store
from lmtp_atrest.keystore.store import Kind, Store, StoreUnavailable, WrongRevision

KINDS = (store.RECORDS, store.VAULTS, store.PINS)


def opened(kind: Kind, tmp_path: Path, *, readonly: bool = False) -> Store:
    return Store(kind, f"sqlite:///{tmp_path / kind.name}.db", readonly=readonly)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made = opened(request.param, tmp_path)
    made.upgrade()
    return made


def test_the_durability_that_was_promised_is_set_on_every_connection(fresh: Store) -> None:
    journal = {"records": ("delete", 3), "vaults": ("wal", 2), "pins": ("wal", 2)}
    for _ in range(3):
        with fresh.transaction() as connection:
            found = [
                connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
            ]
        assert found == [*journal[fresh.kind.name], 1, 1]


def test_the_migrations_make_the_tables_that_the_code_uses(fresh: Store) -> None:
    with fresh.transaction() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, fresh.kind.metadata) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_newest_migration_is_the_revision_that_the_code_asks_for(kind: Kind) -> None:
    config = Config()
    base = Path(store.__file__).parent / "migrations"
    config.set_main_option("script_location", str(base))
    config.set_main_option("version_locations", str(base / kind.name))
    config.set_main_option("path_separator", "newline")
    assert ScriptDirectory.from_config(config).get_heads() == [kind.revision]


def test_another_revision_is_refused_with_the_way_out(fresh: Store) -> None:
    fresh.check_revision()
    with fresh.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'later_0009'"))
    with pytest.raises(WrongRevision, match="keystore upgrade"):
        fresh.check_revision()


def test_an_empty_database_is_refused_and_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    empty = opened(store.RECORDS, tmp_path)
    with pytest.raises(WrongRevision, match="schema none"):
        empty.check_revision()
    empty.upgrade()
    empty.upgrade()
    empty.check_revision()


def test_a_reader_neither_makes_nor_writes_a_store(tmp_path: Path) -> None:
    reader = opened(store.RECORDS, tmp_path, readonly=True)
    with pytest.raises(StoreUnavailable), reader.reading() as connection:
        connection.execute(text("SELECT 1"))
    assert list(tmp_path.iterdir()) == []
    opened(store.RECORDS, tmp_path).upgrade()
    with pytest.raises(StoreUnavailable, match="readonly"), reader.transaction() as connection:
        connection.execute(text("DELETE FROM names"))


def test_readers_of_records_need_no_write_right_once_the_writer_is_gone(tmp_path: Path) -> None:
    made = opened(store.RECORDS, tmp_path)
    made.upgrade()
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["records.db"]
    # As another user sees it, in a directory that is not theirs: SQLite may make no file here.
    (tmp_path / "records.db").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        reader = opened(store.RECORDS, tmp_path, readonly=True)
        reader.check_revision()
        assert [path.name for path in tmp_path.iterdir()] == ["records.db"]
    finally:
        tmp_path.chmod(0o755)


def test_a_locked_store_is_a_temporary_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    made = opened(store.RECORDS, tmp_path)
    made.upgrade()
    blocker = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked"), made.reading() as connection:
        connection.execute(text("SELECT * FROM names")).all()
    blocker.execute("ROLLBACK")
    blocker.close()
    made.check_revision()


def test_a_file_that_is_no_database_is_a_temporary_failure(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        opened(store.RECORDS, tmp_path).check_revision()


def test_readers_do_not_wait_for_each_other(fresh: Store) -> None:
    inside = threading.Barrier(2, timeout=5)

    def read() -> None:
        with fresh.reading() as connection:
            connection.execute(text("SELECT * FROM alembic_version")).all()
            inside.wait()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside.broken
