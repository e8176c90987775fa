"""Bob looks after his own keys before the site's Dovecot, from a first look to a lost password."""

from collections.abc import Iterator

import pytest

from tests.integration.living import Living, password_command
from tests.integration.site import BOB, USERS
from tests.peers.dovecot import Dovecot
from tests.peers.root import attempts, free_ports, wait_for_port
from tests.portal.browsing import Browser, code_on

pytestmark = pytest.mark.peers

PORTAL_USER = "nobody"
NEW, LAST = "violet tram over 7 lakes", "nine quiet lanterns, unlit"
OLD_MAIL = 12


@pytest.fixture
def site(dovecot: Dovecot) -> Iterator[Living]:
    (port,) = free_ports(1)
    portal = {
        "listen": f"127.0.0.1:{port}",
        "url": f"http://127.0.0.1:{port}/keys/",
        "user": PORTAL_USER,
        "authenticate": f"imap://127.0.0.1:{dovecot.ports.imap}",
    }
    command = {"password_command": password_command(dovecot)}
    running = Living(dovecot, portal=portal, site=command)
    with running:
        wait_for_port(port, running.atrest.log_path)
        yield running


async def test_bob_switches_on_changes_forgets_and_reads(site: Living) -> None:
    for number in range(OLD_MAIL):
        assert not site.deliver(f"old{number}", BOB)
    words = {f"old{number}" for number in range(OLD_MAIL)}
    bob = Browser(site.atrest.config.portal.url)
    async with bob.client:
        await bob.sign_in(BOB, "not his")
        assert bob.page.status_code == 403
        await bob.sign_in(BOB, USERS[BOB])
        assert "Your mail is not encrypted" in bob.text
        await bob.submit("switch-on", secret=USERS[BOB], understood="yes")
        code = code_on(bob)
        site.know(code, code.replace("-", ""))
        assert site.deliver("first", BOB), "new mail is encrypted from now on"
        await until(bob, " encrypted, 0 still to do")
        assert all(path.read_bytes()[:7] == b"CRYPTED" for path in site.dovecot.files(BOB))
        assert site.reads(USERS[BOB], BOB) == words | {"first"}

        await bob.submit("password", secret=USERS[BOB], new=NEW, repeat=NEW)
        assert "Your password is changed" in bob.text
        site.know(NEW, LAST)
        site.wait_for_password(BOB, NEW)
        assert site.reads(NEW, BOB) == words | {"first"}
        await bob.get("activity")
        assert "Encryption switched on" in bob.text and "imap, 127.0.0.1" in bob.text

        await bob.submit("sign-out", "")
        await bob.submit("forgot", name=BOB, code=code, new=LAST, repeat=LAST)
        site.know(code_on(bob))
        site.wait_for_password(BOB, LAST)
        assert site.deliver("second", BOB)
        assert site.reads(LAST, BOB) == words | {"first", "second"}
    site.wait_for_notices("kept encrypted", "was changed", "opened with the recovery")


async def until(visitor: Browser, text: str) -> None:
    """Until the overview says so."""
    for _ in attempts(f"{text!r} on the overview", 60):
        await visitor.get("")
        if text in visitor.text:
            return
