"""Notices to users: which are to be sent and which were; nobody is told twice a minute."""

import secrets
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from lmtp_atrest.keystore.schema import notices
from lmtp_atrest.keystore.store import Store

KEEP_MS = 400 * 86400 * 1000
TRY_MS = 7 * 86400 * 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """A mail to a user; what it says follows from its kind."""

    notice_id: str
    account_id: str
    kind: str
    recipient: str
    created: int


class Notices:
    """The notices in the vaults store; times in milliseconds since 1970."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, account_id: str, kind: str, recipient: str, now: int, quiet: int = 0) -> bool:
        """Note one to be sent; False, and nothing noted, if one of this kind is younger than
        `quiet` milliseconds."""
        mine = (notices.c.account_id == account_id) & (notices.c.kind == kind)
        with self.store.transaction() as connection:
            last = connection.execute(
                select(notices.c.created).where(mine).order_by(notices.c.created.desc()).limit(1)
            ).scalar()
            if last is not None and now - last < quiet:
                return False
            connection.execute(
                insert(notices).values(
                    notice_id=secrets.token_hex(16),
                    account_id=account_id,
                    kind=kind,
                    recipient=recipient,
                    created=now,
                )
            )
            return True

    def due(self, now: int) -> list[Notice]:
        """What is to be sent, oldest first; what could not be sent for a week is given up."""
        with self.store.reading() as connection:
            rows = connection.execute(
                select(notices)
                .where(notices.c.sent.is_(None) & (notices.c.created > now - TRY_MS))
                .order_by(notices.c.created)
                .limit(500)
            ).all()
        return [Notice(r.notice_id, r.account_id, r.kind, r.recipient, r.created) for r in rows]

    def sent(self, notice_id: str, now: int) -> None:
        """It is on its way; what is long past is forgotten."""
        with self.store.transaction() as connection:
            connection.execute(
                update(notices).where(notices.c.notice_id == notice_id).values(sent=now)
            )
            connection.execute(delete(notices).where(notices.c.created < now - KEEP_MS))
