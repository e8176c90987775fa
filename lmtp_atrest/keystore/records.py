"""The records store: signed records by name and by account id, checked at every read.

Delivery opens it read-only. The rows are an index; what counts is the signature, so a name that
leads to a record which does not carry it is an alarm, not an answer.
"""

from collections.abc import Iterator
from functools import lru_cache

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from lmtp_atrest.crypto.records import AdminRecord, SignedRecord, SitePublic, State
from lmtp_atrest.errors import Alarm, Conflict
from lmtp_atrest.keystore.schema import accounts, names, site
from lmtp_atrest.keystore.store import Store

ADMIN = "admin"
# Made once: to put a statement together takes longer than SQLite takes to answer it.
_BY_NAME = (
    select(accounts.c.account_id, accounts.c.epoch, accounts.c.document)
    .join(names)
    .where(names.c.name == bindparam("name"))
)
_BY_ID = select(accounts).where(accounts.c.account_id == bindparam("account_id"))
# Verified documents that are remembered, by their bytes: a signature does not go bad.
REMEMBERED = 1024


class Records:
    """Signed records. Reads raise Alarm on what does not verify, TemporaryFailure on trouble."""

    def __init__(self, store: Store, site_public: SitePublic) -> None:
        self.store = store
        self._site = site_public
        self._verify = lru_cache(REMEMBERED)(site_public.verify)

    def by_name(self, name: str) -> SignedRecord | None:
        """The record of the account that has this canonical name."""
        with self.store.reading() as connection:
            row = connection.execute(_BY_NAME, {"name": name}).first()
        if row is None:
            return None
        signed = self._verified(row.account_id, row.epoch, row.document)
        if name not in signed.record.names:
            message = f"the names table leads to account {row.account_id}, whose record differs"
            raise Alarm(message)
        return signed

    def by_id(self, account_id: str) -> SignedRecord | None:
        """The record of this account, removed ones too."""
        with self.store.reading() as connection:
            row = connection.execute(_BY_ID, {"account_id": account_id}).first()
        return self._verified(row.account_id, row.epoch, row.document) if row else None

    def all(self, after: str = "") -> Iterator[SignedRecord]:
        """All records after this account id, removed ones too, by id; read in pages of 500."""
        last = after
        while True:
            page = (
                select(accounts)
                .where(accounts.c.account_id > last)
                .order_by(accounts.c.account_id)
                .limit(500)
            )
            with self.store.reading() as connection:
                rows = connection.execute(page).all()
            for row in rows:
                yield self._verified(row.account_id, row.epoch, row.document)
            if not rows:
                return
            last = rows[-1].account_id

    def put(self, signed: SignedRecord) -> None:
        """Store a record that follows the stored one; the same record again changes nothing.

        Conflict where the stored epoch is neither the one before nor this one, or where another
        account has one of the names.
        """
        record = signed.record
        with self.store.transaction() as connection:
            old = connection.execute(
                select(accounts.c.epoch).where(accounts.c.account_id == record.account_id)
            ).scalar()
            if old not in (None, record.epoch - 1, record.epoch):
                message = f"account {record.account_id} is at epoch {old}, not {record.epoch - 1}"
                raise Conflict(message)
            _write(connection, signed)

    def replace(self, signed: SignedRecord) -> None:
        """The same record under another signature, or, after a restore, at any higher epoch."""
        with self.store.transaction() as connection:
            _write(connection, signed)

    def admin(self) -> AdminRecord | None:
        """The site's admin record."""
        document = self.admin_document()
        return self._site.verify_admin(document) if document else None

    def admin_document(self) -> bytes | None:
        """The same as it was signed."""
        with self.store.reading() as connection:
            return connection.execute(select(site.c.document).where(site.c.what == ADMIN)).scalar()

    def put_admin(self, epoch: int, document: bytes) -> None:
        """Store the admin record; Conflict unless it follows the stored one."""
        with self.store.transaction() as connection:
            old = connection.execute(select(site.c.epoch).where(site.c.what == ADMIN)).scalar()
            if old is None:
                connection.execute(insert(site).values(what=ADMIN, epoch=epoch, document=document))
            elif old in (epoch - 1, epoch):
                connection.execute(
                    update(site).where(site.c.what == ADMIN).values(epoch=epoch, document=document)
                )
            else:
                message = f"the admin record is at epoch {old}, not {epoch - 1}"
                raise Conflict(message)

    def replace_admin(self, epoch: int, document: bytes) -> None:
        """The admin record after a restore, or under another signature, at any epoch."""
        with self.store.transaction() as connection:
            connection.execute(delete(site).where(site.c.what == ADMIN))
            connection.execute(insert(site).values(what=ADMIN, epoch=epoch, document=document))

    def _verified(self, account_id: str, epoch: int, document: bytes) -> SignedRecord:
        signed = self._verify(document)
        if (signed.record.account_id, signed.record.epoch) != (account_id, epoch):
            message = f"row of account {account_id} holds the record of another account or epoch"
            raise Alarm(message)
        return signed


def _write(connection: Connection, signed: SignedRecord) -> None:
    record = signed.record
    ours = accounts.c.account_id == record.account_id
    row = {"epoch": record.epoch, "document": signed.document}
    if connection.execute(update(accounts).where(ours).values(row)).rowcount == 0:
        connection.execute(insert(accounts).values(account_id=record.account_id, **row))
    connection.execute(delete(names).where(names.c.account_id == record.account_id))
    for name in () if record.state is State.REMOVED else record.names:
        if connection.execute(select(names).where(names.c.name == name)).first():
            message = f"{name} is the name of another account"
            raise Conflict(message)
        connection.execute(insert(names).values(name=name, account_id=record.account_id))
