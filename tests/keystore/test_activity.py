"""What an account's owner is told happened."""

from lmtp_atrest.keystore.activity import (
    CLIENT_LIMIT,
    DAY_MS,
    KEEP_MS,
    KEEP_OPENED_MS,
    OPENED,
    SHOWN_LIMIT,
    Activity,
)
from tests.sites import CheapSite

ACCOUNT, OTHER = "a1" * 16, "b2" * 16


def test_openings_are_noted_once_a_day_and_client_changes_each_time(site: CheapSite) -> None:
    activity = Activity(site.vaults.store)
    for at in (0, 5, DAY_MS):
        for client in ("imap, 192.0.2.1", "imap, 192.0.2.2"):
            activity.add(ACCOUNT, OPENED, at, client, daily=True)
    activity.add(ACCOUNT, "code-made", 7)
    activity.add(ACCOUNT, "code-made", 7)
    activity.add(OTHER, "frozen", 8)
    assert [(event.at, event.event) for event in activity.of(ACCOUNT)] == [
        *[(DAY_MS, OPENED)] * 2,
        *[(7, "code-made")] * 2,
        *[(0, OPENED)] * 2,
    ]
    assert activity.last(ACCOUNT, "code-made") == 7
    assert activity.last(ACCOUNT, "frozen") is None


def test_what_is_long_past_is_forgotten(site: CheapSite) -> None:
    activity = Activity(site.vaults.store)
    activity.add(ACCOUNT, OPENED, 0, "imap", daily=True)
    activity.add(ACCOUNT, "enabled", 0)
    activity.add(OTHER, "frozen", KEEP_OPENED_MS + 1)
    assert [event.event for event in activity.of(ACCOUNT)] == ["enabled"]
    activity.add(OTHER, "thawed", KEEP_MS + 1)
    assert activity.of(ACCOUNT) == []


def test_a_client_s_own_words_are_bounded_and_printable(site: CheapSite) -> None:
    activity = Activity(site.vaults.store)
    for number in range(SHOWN_LIMIT + 5):
        activity.add(ACCOUNT, "frozen", number)
    activity.add(ACCOUNT, OPENED, DAY_MS, "imap\x1b[2J" + "x" * 1000, daily=True)
    events = activity.of(ACCOUNT)
    assert len(events) == SHOWN_LIMIT
    assert events[0].client.isprintable() and len(events[0].client) == CLIENT_LIMIT
