"""The newest record that unlock has seen of each account, kept outside both stores.

A store that was restored, or rolled back by somebody who can write to it, shows itself as a lower
epoch than the one pinned here.
"""

from sqlalchemy import Connection, delete, insert, select, update

from lmtp_atrest.crypto.records import AccountRecord, SignedRecord, State
from lmtp_atrest.keystore.schema import seen, seen_names, seen_site
from lmtp_atrest.keystore.store import Store

ADMIN = "admin"


class Pins:
    """Documents by account id, epochs only ever growing."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def document(self, account_id: str) -> bytes | None:
        """The newest document seen."""
        with self.store.reading() as connection:
            return connection.execute(
                select(seen.c.document).where(seen.c.account_id == account_id)
            ).scalar()

    def epoch(self, account_id: str) -> int | None:
        """The highest epoch seen."""
        with self.store.reading() as connection:
            return connection.execute(
                select(seen.c.epoch).where(seen.c.account_id == account_id)
            ).scalar()

    def account_named(self, name: str) -> str | None:
        """The account that had this name when it was last seen."""
        with self.store.reading() as connection:
            return connection.execute(
                select(seen_names.c.account_id).where(seen_names.c.name == name)
            ).scalar()

    def remember(self, signed: SignedRecord) -> None:
        """Pin this record unless a newer one is pinned."""
        record = signed.record
        row = {"epoch": record.epoch, "document": signed.document}
        with self.store.transaction() as connection:
            old = connection.execute(
                select(seen.c.epoch).where(seen.c.account_id == record.account_id)
            ).scalar()
            if old is None:
                connection.execute(insert(seen).values(account_id=record.account_id, **row))
            elif old <= record.epoch:
                connection.execute(
                    update(seen).where(seen.c.account_id == record.account_id).values(row)
                )
            else:
                return
            _rename(connection, record)

    def admin(self) -> tuple[int, bytes] | None:
        """Epoch and document of the newest admin record seen."""
        with self.store.reading() as connection:
            row = connection.execute(
                select(seen_site.c.epoch, seen_site.c.document).where(seen_site.c.what == ADMIN)
            ).first()
        return (row.epoch, row.document) if row else None

    def remember_admin(self, epoch: int, document: bytes) -> None:
        """Pin this admin record unless a newer one is pinned."""
        with self.store.transaction() as connection:
            old = connection.execute(
                select(seen_site.c.epoch).where(seen_site.c.what == ADMIN)
            ).scalar()
            if old is None or old <= epoch:
                connection.execute(delete(seen_site).where(seen_site.c.what == ADMIN))
                connection.execute(
                    insert(seen_site).values(what=ADMIN, epoch=epoch, document=document)
                )

    def documents(self) -> list[bytes]:
        """The newest document of every account seen, by account id."""
        with self.store.reading() as connection:
            rows = connection.execute(select(seen.c.document).order_by(seen.c.account_id)).all()
        return [row.document for row in rows]

    def forget(self, account_id: str) -> None:
        """Nobody has seen this account."""
        with self.store.transaction() as connection:
            connection.execute(delete(seen_names).where(seen_names.c.account_id == account_id))
            connection.execute(delete(seen).where(seen.c.account_id == account_id))


def _rename(connection: Connection, record: AccountRecord) -> None:
    names = () if record.state is State.REMOVED else record.names
    connection.execute(
        delete(seen_names).where(
            (seen_names.c.account_id == record.account_id) | seen_names.c.name.in_(names)
        )
    )
    for name in names:
        connection.execute(insert(seen_names).values(name=name, account_id=record.account_id))
