"""Quota where our LMTP delivers: Dovecot tells Postfix before a message is taken."""

import smtplib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.site import ALICE, BOB, DEPLOY, PASSWORD, USERS, deploy
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot
from tests.peers.postfix import Postfix
from tests.peers.root import Host

pytestmark = pytest.mark.peers

# A field of the site's userdb, in the words of each version.
LIMITED = {"2.3": "userdb_quota_rule=*:storage=200k", "2.4": "userdb_quota_storage_size=200k"}
POLICY = Path("/var/spool/postfix/private/quota-status")
FULL = (552, "5.2.2")


class Site:
    """Postfix asks Dovecot and hands mail to lmtp-atrest, by the shipped snippets."""

    def __init__(self, dovecot: Dovecot, atrest: AtRest, postfix: Postfix) -> None:
        self.dovecot, self.atrest, self.postfix = dovecot, atrest, postfix

    def send(self, size: int, *to: str, announced: bool = True) -> dict[str, tuple[int, str]]:
        """Send by SMTP and wait until it is delivered; who was refused, and with which codes."""
        line = b"canary " * 10 + b"\r\n"
        message = b"Subject: canary\r\n\r\n" + line * (size // len(line))
        with smtplib.SMTP("127.0.0.1", self.postfix.port, timeout=30) as smtp:
            smtp.ehlo()
            if not announced:
                del smtp.esmtp_features["size"]
            refused = _sent(smtp, to, message)
        self.postfix.wait_until_empty()
        return {name: (code, text.decode().split()[0]) for name, (code, text) in refused.items()}

    def counted(self) -> int:
        """What Dovecot counts for alice without her key, in KiB."""
        line = self.dovecot.doveadm("-f", "tab", "quota", "get", "-u", ALICE).splitlines()[1]
        return int(line.split("\t")[2])


class Limited(Dovecot):
    """All have the gigabyte of the shipped snippet, and alice 200 KiB."""

    def write_users(self) -> None:
        super().write_users()
        users = self.host.path("/etc/dovecot/users")
        first, rest = users.read_text().split("\n", 1)
        users.write_text(f"{first}{LIMITED[self.version]}\n{rest}")


def _sent(smtp: smtplib.SMTP, to: Sequence[str], message: bytes) -> dict[str, tuple[int, bytes]]:
    try:
        return smtp.sendmail("s@example.net", to, message)
    except smtplib.SMTPRecipientsRefused as error:
        return error.recipients


@pytest.fixture
def site(host: Host, shared: Path) -> Iterator[Site]:
    (shared / "run").mkdir()
    host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    dovecot = Limited(host, shared, USERS)
    quota = (DEPLOY / f"dovecot/quota-{dovecot.version}.conf").read_text()
    host.write("/etc/dovecot/conf.d/95-quota.conf", quota)
    host.run("install", "-d", "-o", "postfix", str(POLICY.parent))  # as Postfix does, once
    deploy(dovecot)
    with dovecot:
        atrest = AtRest(shared, dovecot)
        atrest.add(ALICE, PASSWORD)
        snippets = ((DEPLOY / "postfix" / name).read_text() for name in ("all.cf", "quota.cf"))
        main = "".join(snippets).replace("127.0.0.1:8024", f"127.0.0.1:{atrest.port}")
        domains = {"virtual_mailbox_domains": "example.org", "recipient_delimiter": "+"}
        with atrest, Postfix(host, shared, domains, main) as postfix:
            yield Site(dovecot, atrest, postfix)


def test_a_full_mailbox_is_refused_before_the_message_is_taken(site: Site) -> None:
    assert site.send(300_000, ALICE) == {ALICE: FULL}, "more than the whole limit"
    assert site.send(90_000, ALICE) == {}
    assert site.send(90_000, ALICE) == {}
    assert site.send(90_000, ALICE, BOB) == {ALICE: FULL}
    assert site.send(90_000, "alice+Junk@example.org") == {"alice+Junk@example.org": FULL}
    assert site.send(1_000, ALICE) == {}, "what still has room is taken"
    files = site.dovecot.files(ALICE)
    # The sizes in our names, of the plaintext with CRLF; nobody has the key.
    sizes = [int(file.name.rpartition(",W=")[2]) for file in files]
    assert site.counted() == -(-sum(sizes) // 1024)
    assert sum(sizes) < sum(file.stat().st_size for file in files) + sum(sizes) // 50
    assert site.send(90_000, ALICE, announced=False) == {}, "Postfix does not know its size"
    assert site.send(1, ALICE, BOB) == {ALICE: FULL}
    assert len(site.dovecot.files(BOB)) == 2
    bob = site.dovecot.login(BOB, USERS[BOB])  # plain, and as full as alice: 200 KiB are her limit
    bob.append("INBOX", "", "", b"x" * 200_000)
    bob.logout()
    assert site.send(1, BOB) == {}
    client = site.dovecot.login(ALICE, PASSWORD)
    assert len(client.bodies()) == 4
    client.store("1:2", "+FLAGS", "\\Deleted")
    client.expunge()
    client.logout()
    assert site.send(90_000, ALICE) == {}
    assert site.postfix.log().count("status=bounced") == 0


def test_where_nobody_can_say_mail_waits_or_is_taken(site: Site) -> None:
    site.atrest.stop()
    ((code, _),) = site.send(1, ALICE).values()
    assert code == 450
    site.atrest.start()
    site.dovecot.stop()
    assert site.send(1, ALICE) == {}
    assert len(site.dovecot.files(ALICE)) == 1
