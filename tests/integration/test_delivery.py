"""From the MTA to the reader: Postfix, our LMTP, the disk, Dovecot over IMAP; nothing is faked."""

import os
import re
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_atrest.unlock.requests import SessionLock
from tests import messages
from tests.integration.site import ALICE, BOB, CAROL, DEPLOY, PASSWORD, USERS
from tests.peers.atrest import AtRest
from tests.peers.clients import smtp_source, swaks
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.postfix import Postfix
from tests.peers.root import Host

pytestmark = pytest.mark.peers

MAGIC = b"CRYPTED\x03\x07\x02"
LATER = "dora@example.org"


def message(text: str) -> bytes:
    head = (
        f"From: eve@example.net\nTo: {ALICE}\nSubject: {text}-subject\nX-{text}: {text}-header\n"
    )
    part = f"\n{text}-body\n" + f"{text} " * 20_000  # beyond what Dovecot keeps in memory
    return (head + re.sub("(.{60} )", "\\1\n", part)).encode()


def snippet(name: str, atrest: AtRest) -> str:
    text = (DEPLOY / "postfix" / name).read_text()
    assert "127.0.0.1:8024" in text
    return text.replace("127.0.0.1:8024", f"127.0.0.1:{atrest.port}")


def to_dovecot(dovecot: Dovecot) -> dict[str, str]:
    return {
        "virtual_mailbox_domains": "example.org",
        "virtual_transport": f"lmtp:inet:127.0.0.1:{dovecot.ports.lmtp}",
    }


@pytest.fixture
def postfix(host: Host, shared: Path, dovecot: Dovecot, atrest: AtRest) -> Iterator[Postfix]:
    """All mail of example.org goes to lmtp-atrest, by the shipped snippet."""
    domains = {"virtual_mailbox_domains": "example.org"}
    with Postfix(host, shared, domains, snippet("all.cf", atrest)) as running:
        yield running


def test_mail_through_postfix_is_read_with_the_right_password_only(
    postfix: Postfix, dovecot: Dovecot
) -> None:
    postfix.sendmail(message("canary"), ALICE, BOB)
    postfix.wait_for(f"to=<{BOB}>.*status=sent")
    postfix.wait_until_empty()
    (sealed,), (plain,) = dovecot.files(ALICE), dovecot.files(BOB)
    assert sealed.read_bytes().startswith(MAGIC)
    assert b"canary-body" in plain.read_bytes()
    client = dovecot.login(ALICE, PASSWORD)
    (body,) = client.bodies()
    assert b"canary-body" in body
    assert body.startswith(b"Return-Path: <s@example.net>\r\n")
    client.logout()
    with pytest.raises(Imap.error, match="AUTHENTICATIONFAILED"):
        dovecot.login(ALICE, "a wrong one")


def test_mixed_outcomes_and_restarts_lose_nothing_and_double_nothing(
    postfix: Postfix, dovecot: Dovecot, atrest: AtRest
) -> None:
    postfix.sendmail(message("first"), ALICE, LATER, BOB)
    postfix.wait_for(f"to=<{LATER}>.*status=deferred.* 451 ")
    postfix.wait_for("status=sent", count=2)
    assert [row["address"] for entry in postfix.queue() for row in entry["recipients"]] == [LATER]
    atrest.stop()
    postfix.sendmail(message("second"), ALICE)
    postfix.wait_for(f"to=<{ALICE}>.*status=deferred.*Connection refused")
    postfix.stop()
    dovecot.users[LATER] = "new here"
    dovecot.write_users()
    atrest.start()
    postfix.start()
    postfix.flush()
    postfix.wait_until_empty()
    assert [len(dovecot.files(name)) for name in (ALICE, BOB, LATER)] == [2, 1, 1]
    assert "status=bounced" not in postfix.log()


def test_while_unlock_is_down_encrypted_mail_is_stored_and_plain_mail_waits(
    postfix: Postfix, dovecot: Dovecot, atrest: AtRest
) -> None:
    atrest.stop()
    atrest.start("lmtp")  # under its own user, with read rights only to the records
    postfix.sendmail(message("alone"), ALICE, BOB)
    postfix.wait_for(f"to=<{ALICE}>.*status=sent")
    postfix.wait_for(f"to=<{BOB}>.*status=deferred.* 451 ")
    assert dovecot.files(ALICE)[0].read_bytes().startswith(MAGIC)
    atrest.stop()
    atrest.start()
    postfix.flush()
    postfix.wait_until_empty()
    assert len(dovecot.files(BOB)) == 1


def test_a_pilot_of_one_address_and_its_way_back(
    host: Host, shared: Path, dovecot: Dovecot, atrest: AtRest
) -> None:
    with Postfix(host, shared, to_dovecot(dovecot)) as postfix:
        postfix.append(snippet("pilot.cf", atrest))
        postfix.table("/etc/postfix/atrest-pilot", f"{BOB} lmtp:inet:127.0.0.1:{atrest.port}\n")
        postfix.restart()
        postfix.sendmail(message("pilot"), BOB, "carol@example.org")
        postfix.wait_for(f"to=<{BOB}>.*:{atrest.port}, .*status=sent")
        postfix.wait_for(f"to=<{CAROL}>.*:{dovecot.ports.lmtp}, .*status=sent")
        postfix.table("/etc/postfix/atrest-pilot", "")
        postfix.restart()
        postfix.sendmail(message("back"), BOB)
        postfix.wait_for(f"to=<{BOB}>.*:{dovecot.ports.lmtp}, .*status=sent")
    assert len(dovecot.files(BOB)) == 2
    # carol is encrypted: Dovecot's own LMTP takes the public key from the unlock service
    assert dovecot.files(CAROL)[0].read_bytes().startswith(MAGIC)


def test_swaks_and_smtp_source_with_several_recipients(
    host: Host, dovecot: Dovecot, atrest: AtRest
) -> None:
    sent = swaks(host, "--to", f"{ALICE},{BOB}", port=atrest.port, data=message("swaks"))
    assert sent.exit_code == 0, sent.transcript
    assert sent.transcript.count("250 2.0.0") == 2
    source = ["-L", "-m", "20", "-s", "4", "-r", "5", "-l", "20000", "-f", "s@example.net"]
    # smtp-source 3.7 numbers the recipients of a message, 3.10 those of all messages on and on.
    old, new = ("u", "2u", "3u", "4u", "5u"), [f"u{number}" for number in range(100)]
    names = [f"{local}@example.org" for local in (old if host.suite == "bookworm" else new)]
    dovecot.users |= dict.fromkeys(names, "x")
    dovecot.write_users()
    time.sleep(1.1)  # a running Dovecot looks at its passwd-file once a second
    smtp_source(host, *source, "-t", "u@example.org", port=atrest.port)
    assert {len(dovecot.files(name)) for name in names} == {100 // len(names)}


def test_every_kind_of_message_comes_back_as_it_was(dovecot: Dovecot, atrest: AtRest) -> None:
    sent = {name: make() for name, make in messages.ALL.items()}
    with smtplib.LMTP("127.0.0.1", atrest.port, timeout=60) as lmtp:
        for data in sent.values():
            assert lmtp.sendmail("c@example.net", [ALICE], data, ["BODY=8BITMIME"]) == {}
    client = dovecot.login(ALICE, PASSWORD)
    bodies = client.bodies()
    assert len(bodies) == len(sent)
    for data, body in zip(sent.values(), bodies, strict=True):
        assert body.endswith(data), data[:300]
    client.logout()


def test_what_clients_do_works_on_ciphertext(host: Host, dovecot: Dovecot, atrest: AtRest) -> None:
    for text in ("bravo", "alpha"):
        swaks(host, "--to", ALICE, port=atrest.port, data=message(text))
    client = dovecot.login(ALICE, PASSWORD)
    everything = "(FLAGS UID INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY.PEEK[TEXT])"
    kind, data = client.fetch("1:*", everything)
    assert kind == "OK"
    assert b"bravo-subject" in str(data).encode()
    assert client.numbers("SEARCH", "TEXT", "alpha-body") == [2]
    assert client.numbers("SORT", "(SUBJECT)", "UTF-8", "ALL") == [2, 1]
    assert client.create("Copies")[0] == "OK"
    assert client.copy("1:2", "Copies")[0] == "OK"
    assert client.append("Copies", "", "", message("saved"))[0] == "OK"
    client.select("Copies")
    assert [b"saved-body" in body for body in client.bodies()] == [False, False, True]
    client.logout()
    assert all(path.read_bytes().startswith(MAGIC) for path in dovecot.files(ALICE))
    assert len(dovecot.files(ALICE)) == 5


def test_a_lock_ends_a_session_that_idles(host: Host, dovecot: Dovecot, atrest: AtRest) -> None:
    swaks(host, "--to", ALICE, port=atrest.port, data=message("idle"))
    client = dovecot.login(ALICE, PASSWORD)
    client.bodies()
    assert list(atrest.caches.iterdir())
    client.send(b"x IDLE\r\n")
    assert client.readline().startswith(b"+ idling")
    reply = atrest.admin(SessionLock(ALICE))
    assert reply.result == "locked"
    assert (reply["vaults"], reply["readers_remaining"]) == (1, 0)
    rest = client.sock.recv(1000)
    assert rest == b"" or rest.startswith(b"* BYE")
    client.shutdown()
    assert not list(atrest.caches.iterdir()), "the cache in RAM is removed"


def holders(root: Path, canary: bytes) -> list[str]:
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and canary in path.read_bytes():
                found.append(str(path.relative_to(root)))
    return found


def test_the_canary_stands_nowhere_on_disk(
    host: Host, postfix: Postfix, dovecot: Dovecot, atrest: AtRest, shared: Path
) -> None:
    postfix.sendmail(message("canary73571"), ALICE)
    postfix.wait_until_empty()
    client = dovecot.login(ALICE, PASSWORD)
    client.fetch("1:*", "(ENVELOPE BODYSTRUCTURE BODY.PEEK[])")
    client.numbers("SEARCH", "TEXT", "canary73571-body")
    client.numbers("SORT", "(SUBJECT)", "UTF-8", "ALL")
    assert holders(atrest.caches, b"canary73571"), "the search finds what is in RAM"
    client.logout()
    atrest.admin(SessionLock(ALICE))
    assert holders(shared, b"canary73571") == holders(atrest.caches, b"canary73571") == []
    assert holders(shared, PASSWORD[:14].encode()) == []
    inside = ("grep", "-rlF", "canary73571", "/tmp", "/var", "/run", "/root", "/home")
    assert host.run(*inside, check=False).stdout.decode() == ""
    assert dovecot.files(ALICE)


def test_doveadm_still_lists_all_users(dovecot: Dovecot, atrest: AtRest) -> None:
    assert set(dovecot.doveadm("user", "*").split()) == set(USERS)
    assert "crypt_global_public_key" in dovecot.doveadm("user", ALICE)
    assert "private_key" not in dovecot.doveadm("user", ALICE)
