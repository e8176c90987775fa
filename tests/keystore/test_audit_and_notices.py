"""The two lists in the vaults store: what was done with keys, and who is told of it."""

from typing import Any

import pytest
from sqlalchemy import delete, select, update

from lmtp_atrest.errors import Alarm
from lmtp_atrest.keystore.notices import KEEP_MS, TRY_MS, Notices
from lmtp_atrest.keystore.schema import audit, notices
from tests.sites import CheapSite

ACCOUNT, ALICE = "a1" * 16, "alice@example.org"
MINUTE = 60_000


def write(site: CheapSite, statement: Any) -> None:
    with site.vaults.store.transaction() as connection:
        connection.execute(statement)


def test_the_audit_holds_what_was_appended_in_order(site: CheapSite) -> None:
    assert list(site.audit.entries()) == []
    for number in range(3):
        site.audit.append(number, "admin-used", ACCOUNT, {"by": "root"})
    site.restart()
    assert [(e.number, e.at, e.event, e.account_id) for e in site.audit.entries()] == [
        (number + 1, number, "admin-used", ACCOUNT) for number in range(3)
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (update(audit).where(audit.c.number == 2).values(event="nothing"), 2),
        (update(audit).where(audit.c.number == 2).values(detail="{}"), 2),
        (update(audit).where(audit.c.number == 3).values(number=9), 3),
        (delete(audit).where(audit.c.number == 2), 2),
        (delete(audit).where(audit.c.number == 1), 1),
    ],
    ids=["edited", "detail", "renumbered", "taken out", "first taken out"],
)
def test_an_entry_edited_or_taken_out_is_an_alarm(
    site: CheapSite, change: Any, where: int
) -> None:
    for number in range(3):
        site.audit.append(number, "admin-used", ACCOUNT, {"by": "root"})
    write(site, change)
    with pytest.raises(Alarm, match=f"entry {where}"):
        list(site.audit.entries())


def test_a_notice_is_due_until_it_was_sent_and_nobody_is_told_twice_a_minute(
    site: CheapSite,
) -> None:
    made = Notices(site.vaults.store)
    assert made.add(ACCOUNT, "mismatch", ALICE, now=0, quiet=MINUTE)
    assert not made.add(ACCOUNT, "mismatch", ALICE, now=MINUTE - 1, quiet=MINUTE)
    assert made.add(ACCOUNT, "frozen", ALICE, now=1, quiet=MINUTE)
    assert made.add("b2" * 16, "mismatch", "bob@example.org", now=2, quiet=MINUTE)
    assert [notice.kind for notice in made.due(3)] == ["mismatch", "frozen", "mismatch"]
    made.sent(made.due(3)[0].notice_id, 3)
    assert [notice.recipient for notice in made.due(3)] == [ALICE, "bob@example.org"]
    assert not made.add(ACCOUNT, "mismatch", ALICE, now=MINUTE - 1, quiet=MINUTE)
    assert made.add(ACCOUNT, "mismatch", ALICE, now=MINUTE, quiet=MINUTE)
    assert made.add(ACCOUNT, "mismatch", ALICE, now=MINUTE)


def test_a_notice_that_cannot_be_sent_is_given_up_and_in_the_end_forgotten(
    site: CheapSite,
) -> None:
    made = Notices(site.vaults.store)
    made.add(ACCOUNT, "frozen", ALICE, now=0)
    assert made.due(TRY_MS - 1) and not made.due(TRY_MS)
    made.add(ACCOUNT, "frozen", ALICE, now=KEEP_MS)
    made.sent(made.due(KEEP_MS)[0].notice_id, KEEP_MS + 1)
    with site.vaults.store.reading() as connection:
        assert [row.created for row in connection.execute(select(notices))] == [KEEP_MS]
