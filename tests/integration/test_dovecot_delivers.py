"""The site's Dovecot delivers by its own LMTP and takes public keys from the unlock service.

Sieve, vacation, quota and the dbox formats, on 2.3 and 2.4: whatever Dovecot stores for an
encrypted account is ciphertext, and where nobody says to which key, nothing is stored.
"""

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.site import ALICE, BOB, DEPLOY, PASSWORD, USERS, deploy
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot
from tests.peers.postfix import Postfix
from tests.peers.root import Host

pytestmark = pytest.mark.peers

# Debian's Dovecot and Pigeonhole, as a site would have set them up before lmtp-atrest.
QUOTA = {
    "2.3": """
mail_plugins = $mail_plugins quota
plugin {
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:bytes=200k
  quota_grace = 0%%
}
""",
    "2.4": """
mail_plugins {
  quota = yes
}
quota "User quota" {
  storage_size = 200k
}
quota_storage_grace = 0
""",
}
SCRIPT = """
require ["fileinto", "mailbox", "vacation"];
if header :contains "subject" "lists" {
  fileinto :create "Lists";
} elsif header :contains "subject" "away" {
  vacation :days 1 "gone fishing";
}
"""


class Site:
    """Postfix hands all mail to Dovecot's LMTP; lmtp-atrest runs without an LMTP of its own."""

    def __init__(self, dovecot: Dovecot, atrest: AtRest, postfix: Postfix) -> None:
        self.dovecot, self.atrest, self.postfix = dovecot, atrest, postfix

    def send(
        self, text: str, *recipients: str, sender: str = "s@example.net", size: int = 0
    ) -> None:
        head = f"From: {sender}\nTo: {ALICE}\nSubject: {text}\n\n"
        body = f"{text}-canary\n" + f"{text}-canary more of it\n" * (size // 20)
        self.postfix.sendmail((head + body).encode(), *recipients, sender=sender)

    def hand_over(self, text: str, *recipients: str) -> list[int]:
        """One message to Dovecot's LMTP, without an MTA between; the reply for each recipient."""
        with smtplib.LMTP("127.0.0.1", self.dovecot.ports.lmtp, timeout=30) as lmtp:
            lmtp.ehlo()
            lmtp.docmd("MAIL FROM:<>")
            assert {lmtp.rcpt(name)[0] for name in recipients} == {250}
            assert lmtp.docmd("DATA")[0] == 354
            lmtp.send(f"Subject: {text}\r\n\r\n{text}-canary\r\n.\r\n")
            return [lmtp.getreply()[0] for _ in recipients]

    def files_with(self, user: str, canary: str) -> list[str]:
        """The files of a user, mail and all others, that hold these words in clear."""
        found = [path for path in (self.dovecot.mail / user).rglob("*") if path.is_file()]
        return [path.name for path in found if canary.encode() in path.read_bytes()]


@pytest.fixture
def site(host: Host, shared: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    (shared / "run").mkdir()
    host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    dovecot = Dovecot(host, shared, USERS)
    delivery = (DEPLOY / f"dovecot/lmtp-{dovecot.version}.conf").read_text()
    storage = getattr(request, "param", "maildir:~/Maildir")
    deploy(dovecot, storage=storage)
    dovecot.conf += QUOTA[dovecot.version] + delivery
    with dovecot:
        home = dovecot.mail / ALICE
        host.run("install", "-d", "-o", "mail", "-g", "mail", str(home))
        (home / ".dovecot.sieve").write_text(SCRIPT)
        atrest = AtRest(shared, dovecot)
        atrest.add(ALICE, PASSWORD)
        transport = {
            "virtual_mailbox_domains": "example.org",
            "virtual_transport": f"lmtp:inet:127.0.0.1:{dovecot.ports.lmtp}",
            "lmtp_destination_recipient_limit": "1",
        }
        atrest.start("unlock", "evict")
        try:
            with Postfix(host, shared, transport) as postfix:
                yield Site(dovecot, atrest, postfix)
        finally:
            atrest.stop()


@pytest.mark.parametrize(
    "site", ["maildir:~/Maildir", "sdbox:~/sdbox", "mdbox:~/mdbox"], indirect=True
)
def test_what_dovecot_stores_is_ciphertext_in_every_format_and_folder(site: Site) -> None:
    site.send("inbox", ALICE, BOB)
    site.send("lists", ALICE)
    site.send("large", ALICE, size=100_000)
    site.postfix.wait_until_empty()
    assert site.postfix.log().count("status=sent") == 4
    assert "status=deferred" not in site.postfix.log()
    assert site.files_with(ALICE, "canary") == []
    assert site.files_with(BOB, "inbox-canary")
    client = site.dovecot.login(ALICE, PASSWORD)
    assert sorted(body.count(b"-canary") for body in client.bodies()) == [1, 5001]
    client.select("Lists")
    assert [b"lists-canary" in body for body in client.bodies()] == [True]
    client.append("INBOX", "", "", b"Subject: saved\r\n\r\nsaved-canary\r\n")
    client.logout()
    assert site.files_with(ALICE, "canary") == []
    # Why the MTA hands over one at a time: for the second, Dovecot copies the file of the first.
    (site.dovecot.mail / ALICE / ".dovecot.sieve").unlink()  # a script stores by itself
    assert site.hand_over("one", ALICE, BOB) == [250, 451]
    assert site.hand_over("two", BOB, ALICE) == [250, 250]
    hard_links = site.dovecot.version == "2.3" and list(site.dovecot.mail.rglob("sdbox"))
    assert len(site.files_with(ALICE, "canary")) == (1 if hard_links else 0)


def test_a_vacation_reply_goes_out_and_leaves_nothing_in_clear(site: Site) -> None:
    site.send("away", ALICE, sender=BOB)
    site.postfix.wait_for(f"to=<{BOB}>.*status=sent")
    site.postfix.wait_until_empty()
    assert site.files_with(BOB, "gone fishing")
    assert site.files_with(ALICE, "away-canary") == []


def test_a_full_mailbox_is_refused_for_itself_alone(site: Site) -> None:
    site.send("first", ALICE, BOB, size=150_000)
    site.postfix.wait_for("status=sent", count=2)
    site.send("second", ALICE, size=150_000)
    (bounced,) = site.postfix.wait_for(f"to=<{ALICE}>.*status=bounced.*")
    assert "552 5.2.2" in bounced[0]
    site.send("small", ALICE, BOB)
    site.postfix.wait_for("status=sent", count=4)
    client = site.dovecot.login(ALICE, PASSWORD)
    assert len(client.bodies()) == 2
    client.logout()


def test_without_the_unlock_service_nothing_is_stored_and_mail_waits(site: Site) -> None:
    site.atrest.stop()
    site.send("waiting", ALICE, BOB)
    site.postfix.wait_for(r"status=deferred.* 451 4\.3\.0", count=2)
    assert site.files_with(ALICE, "canary") == site.files_with(BOB, "canary") == []
    site.atrest.start("unlock", "evict")
    site.postfix.flush()
    site.postfix.wait_until_empty()
    assert site.files_with(ALICE, "canary") == []
    assert site.files_with(BOB, "waiting-canary")
    client = site.dovecot.login(ALICE, PASSWORD)
    assert len(client.bodies()) == 1
    client.logout()
