"""The audit: what was done with keys that are not the doer's own, durable before it is done.

Each entry carries SHA-256 over the digest before it and its own fields, so that one which is
edited, or taken out from between others, shows. Whoever can write to the store can rewrite all of
it, or cut off its end: copies of the log, which has every entry too, with its digest, are what
they would have to change as well.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import insert, select

from lmtp_atrest.errors import Alarm
from lmtp_atrest.keystore.schema import audit
from lmtp_atrest.keystore.store import Store
from lmtp_atrest.telemetry import logger

START = bytes(32)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `at` in milliseconds since 1970, `account_id` empty for the site as a whole."""

    number: int
    at: int
    event: str
    account_id: str
    detail: str


class Audit:
    """Entries in order, in the vaults store; only ever appended."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def append(
        self, at: int, event: str, account_id: str = "", detail: Mapping[str, str] | None = None
    ) -> Entry:
        """Write an entry durably; StoreUnavailable where that fails: then nothing may be done."""
        text = json.dumps(dict(detail or {}), sort_keys=True)
        with self.store.transaction() as connection:
            last = connection.execute(
                select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)
            ).first()
            entry = Entry((last.number if last else 0) + 1, at, event, account_id, text)
            digest = _digest(last.digest if last else START, entry)
            connection.execute(
                insert(audit).values(
                    number=entry.number,
                    at=at,
                    event=event,
                    account_id=account_id,
                    detail=text,
                    digest=digest,
                )
            )
        logger("audit").warning(
            event, number=entry.number, account=account_id, digest=digest.hex(), **(detail or {})
        )
        return entry

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first; Alarm at the first that does not follow the one before."""
        with self.store.reading() as connection:
            rows = connection.execute(select(audit).order_by(audit.c.number)).all()
        before = START
        for number, row in enumerate(rows, 1):
            entry = Entry(row.number, row.at, row.event, row.account_id, row.detail)
            if entry.number != number or _digest(before, entry) != row.digest:
                message = f"the audit was changed at entry {number}"
                raise Alarm(message)
            before = row.digest
            yield entry


def _digest(before: bytes, entry: Entry) -> bytes:
    fields = [entry.number, entry.at, entry.event, entry.account_id, entry.detail]
    return hashlib.sha256(before + json.dumps(fields).encode()).digest()
