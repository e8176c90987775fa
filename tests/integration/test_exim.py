"""From Exim to the reader, by the files of deploy/exim: our LMTP, the disk, Dovecot over IMAP."""

import re
import smtplib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.site import ALICE, BOB, CAROL, PASSWORD
from tests.peers.atrest import AtRest
from tests.peers.cutter import Cut, cutter
from tests.peers.dovecot import Dovecot
from tests.peers.exim import LIST, Exim
from tests.peers.root import Host, attempts, free_ports

pytestmark = pytest.mark.peers

MAGIC = b"CRYPTED\x03\x07\x02"
NOBODY = "nobody@example.org"


def message(text: str) -> bytes:
    return f"From: eve@example.net\nSubject: {text}\n\n{text}-body\n".encode()


@pytest.fixture
def exim(host: Host, shared: Path, atrest: AtRest) -> Iterator[Exim]:
    """All mail of example.org goes to lmtp-atrest."""
    with Exim(host, shared, atrest.port) as running:
        yield running


def reject_unknown(atrest: AtRest) -> None:
    atrest.stop()
    settings = yaml.safe_load(atrest.config_path.read_text())
    settings["mail"]["unknown_recipients"] = "reject"
    atrest.config_path.write_text(yaml.safe_dump(settings))
    atrest.start()


def subjects(dovecot: Dovecot, name: str, secret: str) -> Counter[str]:
    client = dovecot.login(name, secret)
    bodies = client.bodies() if dovecot.files(name) else []
    client.logout()
    lines = [line for body in bodies for line in body.split(b"\r\n\r\n")[0].splitlines()]
    return Counter(line.decode()[9:] for line in lines if line.startswith(b"Subject: "))


def test_the_shipped_files_mean_what_they_say(host: Host, shared: Path) -> None:
    (port,) = free_ports(1)
    with Exim(host, shared, port, addresses=f"{ALICE}\n*@example.com") as exim:
        assert "Exim version 4." in exim.run("-bV")
        ways = {
            ALICE: "lmtp_atrest",
            "alice+folder@example.org": "lmtp_atrest",
            "Alice@Example.ORG": "lmtp_atrest",
            "anybody@example.com": "lmtp_atrest",
            BOB: "before",
            "alice@example.net": "before",
        }
        for address, way in ways.items():
            assert f"transport = {way}" in exim.run("-bt", address), address
        assert "F,5d,30m" in exim.run("-brt", ALICE, "rcpt_4xx")
        assert "F,2w,15m" in exim.run("-brt", "127.0.0.1", "example.org")
        assert "F,4d,6h" in exim.run("-brt", "alice@example.net")


def test_each_recipient_of_a_message_is_settled_by_itself(
    exim: Exim, dovecot: Dovecot, atrest: AtRest
) -> None:
    reject_unknown(atrest)
    mailbox = dovecot.mail / CAROL
    mailbox.symlink_to(dovecot.mail)  # never followed: carol's mail is put off
    exim.send(message("mixed"), ALICE, BOB, CAROL, NOBODY, sender=BOB)
    assert exim.queue() == [CAROL]
    assert re.search(rf"== {CAROL} .*: 451 ", exim.log())
    assert re.search(rf"\*\* {NOBODY} .*: 550 ", exim.log())
    exim.retry()
    mailbox.unlink()
    exim.retry()
    assert exim.queue() == []
    assert len(dovecot.files(CAROL)) == 1
    assert all(path.read_bytes().startswith(MAGIC) for path in dovecot.files(ALICE))
    assert subjects(dovecot, ALICE, PASSWORD) == {"mixed": 1}
    bounced = "Mail delivery failed: returning message to sender"
    assert subjects(dovecot, BOB, "bob's own") == {"mixed": 1, bounced: 1}
    assert "did not show" not in atrest.log(), "Exim reads all replies before it closes"


def test_an_unknown_recipient_is_refused_before_exim_takes_the_message(
    host: Host, exim: Exim, atrest: AtRest
) -> None:
    reject_unknown(atrest)
    host.write("/etc/exim4/local_rcpt_callout", "*@example.org\n")
    with smtplib.SMTP("127.0.0.1", exim.port) as smtp:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            smtp.sendmail("c@example.net", [NOBODY], message("callout"))
        assert refused.value.recipients[NOBODY][0] == 550
        assert smtp.sendmail("c@example.net", [ALICE], message("callout")) == {}


def test_mail_sent_while_the_service_is_down_or_stops_comes_once(
    exim: Exim, dovecot: Dovecot, atrest: AtRest
) -> None:
    atrest.stop()
    exim.send(message("down"), ALICE, BOB)
    assert sorted(exim.queue()) == [ALICE, BOB]
    atrest.start()
    for number in range(30):
        exim.run("-odq", "-oi", "-f", "s@example.net", ALICE, stdin=message(f"queued {number}"))
    run = threading.Thread(target=exim.retry)
    run.start()
    for _ in attempts("some are delivered", log=exim.log_path):
        if len(dovecot.files(ALICE)) > 3:
            break
    atrest.stop()
    run.join()
    assert exim.queue(), "the service stopped in the middle of the queue run"
    atrest.start()
    exim.retry()
    assert exim.queue() == []
    sent = {"down", *(f"queued {number}" for number in range(30))}
    assert subjects(dovecot, ALICE, PASSWORD) == dict.fromkeys(sent, 1)
    assert " ** " not in exim.log(), "nothing bounced"


def test_a_connection_cut_around_the_dot_stores_the_message_once(
    exim: Exim, dovecot: Dovecot, atrest: AtRest
) -> None:
    with cutter(atrest.port, [Cut.BEFORE_THE_DOT, Cut.AFTER_THE_DOT, Cut.AFTER_THE_DOT]) as port:
        exim.lmtp = port
        exim.install()
        exim.send(message("cut"), ALICE, BOB)
        assert [len(dovecot.files(name)) for name in (ALICE, BOB)] == [0, 0]
        for _ in range(2):
            exim.retry()
            assert sorted(exim.queue()) == [ALICE, BOB]
            assert [len(dovecot.files(name)) for name in (ALICE, BOB)] == [1, 1]
        exim.retry()
    assert exim.queue() == []
    assert exim.log().count('C="250 2.0.0 stored already"') == 2
    assert [len(dovecot.files(name)) for name in (ALICE, BOB)] == [1, 1]
    assert subjects(dovecot, ALICE, PASSWORD) == {"cut": 1}


BODIES = {
    "line of 998": b"x" * 998,
    "line of 999": b"x" * 999,
    "line of 5,000": b"x" * 5_000,
    "line of 1 MB": b"x" * (1 << 20),
    "8 bits": "Blöße, Öl, çédille, 東京".encode() + bytes(range(128, 256)),
    "dots": b".\r\n..\r\n.a\r\n\r\n.",
    "blank lines at the end": b"text\r\n\r\n\r\n",
}


def test_what_a_message_holds_comes_back_byte_for_byte(exim: Exim, dovecot: Dovecot) -> None:
    sent = [b"Subject: %s\r\n\r\n%s\r\n" % (name.encode(), body) for name, body in BODIES.items()]
    with smtplib.SMTP("127.0.0.1", exim.port) as smtp:
        for data in sent:
            assert smtp.sendmail("c@example.net", [ALICE], data, ["BODY=8BITMIME"]) == {}
    sender = "jörg@example.net"
    with smtplib.SMTP("127.0.0.1", exim.port) as smtp:
        smtp.sendmail(sender, [ALICE], "Subject: ü\r\n\r\nü\r\n".encode(), ["SMTPUTF8"])
    for _ in attempts("Exim delivers", log=exim.log_path):
        if len(dovecot.files(ALICE)) > len(sent):
            break
    client = dovecot.login(ALICE, PASSWORD)
    arrived = {body[body.index(b"Subject: ") :] for body in client.bodies()}
    client.logout()
    assert arrived == {*sent, "Subject: ü\r\n\r\nü\r\n".encode()}
    assert " ** " not in exim.log(), "nothing bounced"


def test_a_pilot_of_one_address_and_its_way_back(
    host: Host, shared: Path, dovecot: Dovecot, atrest: AtRest
) -> None:
    before = dovecot.ports.lmtp
    with Exim(host, shared, atrest.port, before=before, addresses=BOB) as exim:
        exim.send(message("pilot"), BOB, CAROL)
        exim.lmtp = free_ports(1)[0]
        exim.install()
        exim.send(message("queued"), BOB)
        assert exim.queue() == [BOB]
        exim.take("")
        exim.retry()
        exim.send(message("back"), BOB)
        host.path(LIST).unlink()
        exim.send(message("without the list"), BOB)
        assert exim.queue() == [BOB], "mail waits, it is not stored the old way"
        exim.take("")
        exim.retry()
        assert exim.queue() == []
        ways = {
            line.split(" T=")[1].split()[0] for line in exim.log().splitlines() if "=>" in line
        }
        assert ways == {"lmtp_atrest", "before"}
    assert len(dovecot.files(BOB)) == 4
    # carol is encrypted: Dovecot's own LMTP takes the public key from the unlock service
    assert dovecot.files(CAROL)[0].read_bytes().startswith(MAGIC)
