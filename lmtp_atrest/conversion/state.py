"""What runs have done, account by account, and that only one works on an account at a time.

The rows are counts for people to read: what a run does to a message follows from the message.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import insert, select, update

from lmtp_atrest.conversion.run import Counts, Failure
from lmtp_atrest.errors import Conflict
from lmtp_atrest.keystore.schema import runs
from lmtp_atrest.keystore.store import CONVERSION, Store

FAILURES_KEPT = 100


@dataclass(frozen=True, slots=True)
class RunState:
    """A row; times in milliseconds since 1970, `clean` None before a run found nothing to do."""

    account_id: str
    direction: str
    state: str
    started: int
    updated: int
    clean: int | None
    done: int
    skipped: int
    failed: int
    bytes: int
    failures: tuple[Failure, ...]


class States:
    """The runs of this machine, and their locks."""

    def __init__(self, url: str) -> None:
        self.store = Store(CONVERSION, url)

    def open(self) -> None:
        """Make the store where there is none."""
        if self.store.revision() != CONVERSION.revision:
            self.store.upgrade()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    @contextmanager
    def exclusive(self, account_id: str) -> Iterator[None]:
        """Conflict where another run works on this account; a killed one holds nothing."""
        path = self.store.path.with_name(f"{account_id}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another run works on account {account_id}"
            raise Conflict(message) from error
        else:
            yield
        finally:
            os.close(descriptor)

    def begin(self, account_id: str, direction: str, now: int) -> None:
        """A run starts, from nothing done."""
        values: dict[str, Any] = {
            "direction": direction,
            "state": "running",
            "started": now,
            "updated": now,
            **_counted(Counts()),
        }
        with self.store.transaction() as connection:
            mine = runs.c.account_id == account_id
            if connection.execute(update(runs).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(runs).values(account_id=account_id, **values))

    def note(self, account_id: str, counts: Counts, now: int, state: str = "") -> None:
        """How far it is; `state` where that changes."""
        values = {"updated": now, **_counted(counts), **({"state": state} if state else {})}
        with self.store.transaction() as connection:
            connection.execute(update(runs).where(runs.c.account_id == account_id).values(values))

    def clean(self, account_id: str, started: int) -> None:
        """A run that began then found nothing left to do."""
        with self.store.transaction() as connection:
            connection.execute(
                update(runs).where(runs.c.account_id == account_id).values(clean=started)
            )

    def pause(self, account_id: str) -> bool:
        """Ask a run to end after its batch; False where none is running or waiting."""
        running = (runs.c.account_id == account_id) & runs.c.state.in_(("running", "waiting"))
        with self.store.transaction() as connection:
            paused = connection.execute(update(runs).where(running).values(state="paused"))
            return paused.rowcount > 0

    def resume(self, account_id: str) -> bool:
        """Let a paused run go on by itself; False where none is paused."""
        paused = (runs.c.account_id == account_id) & (runs.c.state == "paused")
        with self.store.transaction() as connection:
            resumed = connection.execute(update(runs).where(paused).values(state="waiting"))
            return resumed.rowcount > 0

    def is_paused(self, account_id: str) -> bool:
        """Whether somebody asked for a pause."""
        row = self.get(account_id)
        return row is not None and row.state == "paused"

    def get(self, account_id: str) -> RunState | None:
        """The row of an account."""
        with self.store.reading() as connection:
            row = connection.execute(select(runs).where(runs.c.account_id == account_id)).first()
        return _state(row) if row else None

    def all(self) -> list[RunState]:
        """All rows."""
        with self.store.reading() as connection:
            rows = connection.execute(select(runs).order_by(runs.c.account_id)).all()
        return [_state(row) for row in rows]


def _counted(counts: Counts) -> dict[str, Any]:
    kept = [asdict(failure) for failure in counts.failures[:FAILURES_KEPT]]
    return {
        "done": counts.done,
        "skipped": counts.skipped,
        "failed": counts.failed,
        "bytes": counts.bytes,
        "failures": json.dumps(kept),
    }


def _state(row: Any) -> RunState:
    fields = dict(row._mapping)
    fields["failures"] = tuple(Failure(**one) for one in json.loads(fields["failures"]))
    return RunState(**fields)
