"""Dovecot's index cache of an encrypted account: in RAM, fast in the next session, then gone."""

import base64
import os
import shutil
import time

import pytest

from lmtp_atrest.crypto.dcrypt import seal
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.unlock.requests import Lookup, SessionLock
from tests.integration.site import ALICE, PASSWORD
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot, Imap

pytestmark = pytest.mark.peers

MESSAGES = 5_000
DIFFERENT = 50


def fill(dovecot: Dovecot, atrest: AtRest) -> None:
    """A folder of 5,000 messages as our delivery writes them, each of 50 under 100 names."""
    pem = base64.b64decode(atrest.admin(Lookup(ALICE))["public_key"])
    public_key = PublicKey.from_pem(pem)
    new = dovecot.mail / ALICE / "Maildir" / "new"
    for number in range(DIFFERENT):
        text = (
            f"From: eve{number}@example.net\nDate: Wed, {1 + number % 28} Nov 2026 10:00:00 GMT\n"
            f"Subject: canary73571\nMessage-ID: <{number}@example.net>\n\nbody\n{'x' * 5000}\n"
        ).encode()
        lines = text.count(b"\n")
        sizes = f",S={len(text)},W={len(text) + lines}"
        first = new / f"1700000000.M{number}P1Q0{sizes}"
        first.write_bytes(seal(public_key, text))
        shutil.chown(first, "mail", "mail")
        for copy in range(1, MESSAGES // DIFFERENT):
            os.link(first, new / f"{1700000000 + copy}.M{number}P1Q{copy}{sizes}")


def sort_and_thread(client: Imap) -> float:
    started = time.monotonic()
    assert len(client.numbers("SORT", "(REVERSE DATE)", "UTF-8", "ALL")) == MESSAGES
    assert len(client.numbers("THREAD", "REFERENCES", "UTF-8", "ALL")) == MESSAGES
    return time.monotonic() - started


def test_the_next_session_sorts_at_once_and_nothing_of_it_is_on_disk(
    dovecot: Dovecot, atrest: AtRest
) -> None:
    dovecot.login(ALICE, PASSWORD).logout()
    fill(dovecot, atrest)
    client = dovecot.login(ALICE, PASSWORD)
    first = sort_and_thread(client)
    client.logout()
    read_first, opened = len(dovecot.log()), "Opened mail because"
    assert dovecot.log().count(opened) >= MESSAGES, "the log tells which messages were read"
    client = dovecot.login(ALICE, PASSWORD)
    second = sort_and_thread(client)
    print(
        f"\n{dovecot.version}: SORT and THREAD of {MESSAGES}: {first:.3f} s, then {second:.3f} s"
    )
    assert dovecot.log()[read_first:].count(opened) < MESSAGES // 100
    (cache,) = atrest.caches.rglob("dovecot.index.cache")
    assert b"canary73571" in cache.read_bytes()
    assert not list(dovecot.mail.rglob("dovecot.index.cache*"))
    cache.unlink()  # as the size limit does, under a session: Dovecot reads the mail again
    assert len(client.numbers("SORT", "(FROM)", "UTF-8", "ALL")) == MESSAGES
    client.logout()
    assert atrest.admin(SessionLock(ALICE))["readers_remaining"] == 0
    assert not list(atrest.caches.iterdir())


def test_a_restart_forgets_what_was_in_ram(dovecot: Dovecot, atrest: AtRest) -> None:
    client = dovecot.login(ALICE, PASSWORD)
    client.append("INBOX", "", "", b"Subject: canary73571\r\n\r\nbody\r\n")
    client.numbers("SORT", "(SUBJECT)", "UTF-8", "ALL")
    client.logout()
    assert list(atrest.caches.rglob("dovecot.index.cache"))
    atrest.stop()
    atrest.start()
    assert not list(atrest.caches.iterdir())
