"""A store's database: opened with the durability that promises need, at a known schema revision.

SQLite with `synchronous=FULL` in WAL mode lost none of 300 acknowledged commits at a power cut,
with NORMAL all of them; a rollback journal needs EXTRA (lmtp-and-durability-facts, 0.4). The
records store uses the rollback journal, because its readers run under another user with read
rights only, and a WAL cannot be read so once its last writer has gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError

from lmtp_atrest.errors import ConfigError, TemporaryFailure
from lmtp_atrest.keystore import schema

BUSY_SECONDS = 5


class StoreUnavailable(TemporaryFailure):
    """The database is gone, locked too long, or broken."""


class WrongRevision(StoreUnavailable):
    """The database has another schema than this program; nothing is read from it."""

    exit_code = ConfigError.exit_code  # trying again later does not help


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the three stores."""

    name: str
    metadata: MetaData
    revision: str
    pragmas: tuple[str, ...]


WAL = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON")
ROLLBACK = ("journal_mode=DELETE", "synchronous=EXTRA", "secure_delete=ON", "foreign_keys=ON")
RECORDS = Kind("records", schema.RECORDS, "records_0001", ROLLBACK)
VAULTS = Kind("vaults", schema.VAULTS, "vaults_0003", WAL)
CONVERSION = Kind("conversion", schema.CONVERSION, "conversion_0001", WAL)
PINS = Kind("pins", schema.PINS, "pins_0002", WAL)


class Store:
    """One database. Methods may be called from any thread; each call is one transaction."""

    def __init__(self, kind: Kind, url: str, *, readonly: bool = False) -> None:
        self.kind = kind
        self.path = Path(url.removeprefix("sqlite:///"))
        self._readonly = readonly
        mode = "ro" if readonly else "rwc"
        self._engine: Engine = create_engine(
            f"sqlite:///file:{quote(str(self.path))}?mode={mode}&uri=true",
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
            pool_size=4,
            max_overflow=28,
            hide_parameters=True,  # else a trace would print rows
        )
        event.listen(self._engine, "connect", self._prepare)
        event.listen(self._engine, "begin", self._begin)

    def _prepare(self, connection: Any, _record: Any) -> None:
        # The driver's own transaction handling would start writes as readers; see _begin.
        connection.isolation_level = None
        if not self._readonly:
            for pragma in self.kind.pragmas:
                connection.execute(f"PRAGMA {pragma}")

    def _begin(self, connection: Connection) -> None:
        # IMMEDIATE takes the write lock at once: compare-and-set never reads a stale epoch.
        reads = self._readonly or connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commits durably at the end; StoreUnavailable on any database error."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            message = f"store {self.kind.name}: {error.orig}"
            raise StoreUnavailable(message) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One snapshot, taken beside writers."""
        try:
            with self._engine.connect() as connection:
                yield connection.execution_options(reads=True)
        except DatabaseError as error:
            message = f"store {self.kind.name}: {error.orig}"
            raise StoreUnavailable(message) from error

    def check_revision(self) -> None:
        """WrongRevision unless the schema is the one this program knows."""
        found = self.revision()
        if found != self.kind.revision:
            message = (
                f"store {self.kind.name} has schema {found or 'none'}, this program needs "
                f"{self.kind.revision}: stop the services and run `lmtp-atrest keystore upgrade`"
            )
            raise WrongRevision(message)

    def revision(self) -> str | None:
        """The schema revision found, None for an empty database."""
        try:
            with self.reading() as connection:
                row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, OperationalError) and "no such table" in str(cause.orig):
                return None
            raise
        return row[0] if row else None

    def upgrade(self) -> None:
        """Bring the schema to this program's revision; makes the file where there is none."""
        # Alembic takes 0.2 s to import and only this needs it.
        from alembic import command
        from alembic.config import Config

        migrations = files("lmtp_atrest.keystore") / "migrations"
        config = Config()
        config.set_main_option("script_location", str(migrations))
        config.set_main_option("version_locations", str(migrations / self.kind.name))
        config.set_main_option("path_separator", "newline")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            config.attributes["metadata"] = self.kind.metadata
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
