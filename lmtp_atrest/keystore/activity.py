"""What an account's owner is told happened to it: who opened it on which day, and what changed."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, insert, select

from lmtp_atrest.keystore.schema import activity
from lmtp_atrest.keystore.store import Store

DAY_MS = 86400 * 1000
KEEP_OPENED_MS = 90 * DAY_MS
KEEP_MS = 400 * DAY_MS
SHOWN_LIMIT = 200
CLIENT_LIMIT = 200
OPENED = "opened"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `at` in milliseconds since 1970, `client` may be empty."""

    at: int
    event: str
    client: str


class Activity:
    """The events in the vaults store. No secret is among them; where somebody came from is."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(
        self, account_id: str, event: str, now: int, client: str = "", *, daily: bool = False
    ) -> None:
        """Note an event, `daily` only once a day and client; what is long past is forgotten."""
        entry_id = secrets.token_hex(16)
        if daily:
            day = datetime.fromtimestamp(now / 1000, UTC).date().isoformat()
            key = f"{account_id} {day} {event} {client}".encode("utf-8", "surrogateescape")
            entry_id = hashlib.sha256(key).hexdigest()[:32]
        self._insert(entry_id, account_id, event, now, client)

    def of(self, account_id: str) -> list[Event]:
        """The newest events of an account, newest first."""
        wanted = (
            select(activity.c.at, activity.c.event, activity.c.client)
            .where(activity.c.account_id == account_id)
            .order_by(activity.c.at.desc())
            .limit(SHOWN_LIMIT)
        )
        with self.store.reading() as connection:
            return [Event(row.at, row.event, row.client) for row in connection.execute(wanted)]

    def last(self, account_id: str, event: str) -> int | None:
        """When this happened last."""
        wanted = (
            select(activity.c.at)
            .where((activity.c.account_id == account_id) & (activity.c.event == event))
            .order_by(activity.c.at.desc())
            .limit(1)
        )
        with self.store.reading() as connection:
            found = connection.execute(wanted).scalar()
        return int(found) if found is not None else None

    def _insert(self, entry_id: str, account_id: str, event: str, at: int, client: str) -> None:
        client = "".join(c if c.isprintable() else "\ufffd" for c in client)[:CLIENT_LIMIT]
        old = (activity.c.at < at - KEEP_MS) | (
            (activity.c.event == OPENED) & (activity.c.at < at - KEEP_OPENED_MS)
        )
        with self.store.transaction() as connection:
            mine = select(activity.c.entry_id).where(activity.c.entry_id == entry_id)
            if connection.execute(mine).first() is not None:
                return
            connection.execute(delete(activity).where(old))
            connection.execute(
                insert(activity).values(
                    entry_id=entry_id, account_id=account_id, at=at, event=event, client=client
                )
            )
