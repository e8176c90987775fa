"""The harness itself: each peer starts and answers, and nothing of it is left afterwards."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.clients import smtp_source, swaks
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.exim import BINARY, Exim
from tests.peers.postfix import Postfix
from tests.peers.root import ROOTS, Host, free_ports, missing, pids_in

pytestmark = pytest.mark.peers

MESSAGE = b"From: a@example.org\nTo: alice@example.org\nSubject: hello\n\nbody of the message\n"


@pytest.fixture
def dovecot(host: Host, shared: Path) -> Iterator[Dovecot]:
    with Dovecot(host, shared, {"alice@example.org": "secret"}) as running:
        yield running


def to_dovecot(dovecot: Dovecot) -> dict[str, str]:
    return {
        "virtual_mailbox_domains": "example.org",
        "virtual_transport": f"lmtp:inet:127.0.0.1:{dovecot.ports.lmtp}",
    }


def test_a_host_leaves_no_process_no_mount_and_no_change_of_its_root(shared: Path) -> None:
    if reason := missing("bookworm"):
        pytest.skip(reason)
    with Host("bookworm", shared) as host:
        host.write("/etc/canary", "x")
        host.run("sh", "-c", "sleep 1000 >/dev/null 2>&1 & (setsid sleep 1000 >/dev/null 2>&1 &)")
        (shared / "seen").write_text("outside")
        assert host.run("cat", str(shared / "seen")).stdout == b"outside"
        assert len(host.pids()) == 2
    assert pids_in(host.namespace) == []
    assert str(shared) not in Path("/proc/self/mounts").read_text()
    assert not (ROOTS / "bookworm/etc/canary").exists()
    assert [path.name for path in shared.iterdir()] == ["seen"]


def test_a_host_that_cannot_start_leaves_nothing(shared: Path) -> None:
    if reason := missing("bookworm"):
        pytest.skip(reason)
    host = Host("no-such-suite", shared)
    with pytest.raises(RuntimeError), host:
        pass
    assert list(shared.iterdir()) == []


def test_dovecot_takes_mail_by_lmtp_and_shows_it_by_imap(host: Host, dovecot: Dovecot) -> None:
    sent = swaks(host, "--to", "nobody@example.org", port=dovecot.ports.lmtp, data=MESSAGE)
    assert sent.exit_code != 0, sent.transcript
    sent = swaks(host, "--to", "alice@example.org", port=dovecot.ports.lmtp, data=MESSAGE)
    assert sent.exit_code == 0, sent.transcript
    client = dovecot.login("alice@example.org", "secret")
    (body,) = client.bodies()
    assert b"body of the message" in body
    client.logout()
    with pytest.raises(Imap.error, match="AUTHENTICATIONFAILED"):
        dovecot.login("alice@example.org", "wrong")
    assert "alice" in dovecot.doveadm("user", "alice@example.org")
    dovecot.stop()
    assert host.run("pidof", "dovecot", check=False).stdout == b""


def test_postfix_delivers_in_its_chroot_and_keeps_what_it_cannot(
    host: Host, dovecot: Dovecot, shared: Path
) -> None:
    (port,) = free_ports(1)
    transport = {**to_dovecot(dovecot), "virtual_transport": f"lmtp:inet:127.0.0.1:{port}"}
    with Postfix(host, shared, transport) as postfix:
        assert host.run("postconf", "-M", "lmtp/unix").stdout.split()[4] == b"y"
        postfix.sendmail(MESSAGE, "alice@example.org")
        postfix.wait_for("status=deferred")
        assert [row["recipients"][0]["address"] for row in postfix.queue()] == [
            "alice@example.org"
        ]
        sent = swaks(
            host, "--to", "bob@example.org", port=postfix.port, protocol="SMTP", data=MESSAGE
        )
        assert sent.exit_code == 0, sent.transcript
        postfix.stop()
        postfix.start()
        postfix.wait_for("to=<bob@example.org>.*status=deferred")


def test_exim_starts_beside_postfix_and_routes_to_lmtp(host: Host, shared: Path) -> None:
    (lmtp,) = free_ports(1)
    with Exim(host, shared, lmtp) as exim:
        assert "Exim version 4." in exim.run("-bV")
        assert "transport = lmtp_atrest" in exim.run("-bt", "alice@example.org")
        exim.run("-i", "alice@example.org", stdin=MESSAGE)
        end = time.monotonic() + 10
        while "Connection refused" not in exim.log() and time.monotonic() < end:
            time.sleep(0.1)
        assert "Connection refused" in exim.log()
        assert BINARY.encode() in host.run("sh", "-c", "cat /proc/*/cmdline").stdout


def test_smtp_source_speaks_lmtp(host: Host, dovecot: Dovecot) -> None:
    source = ("-L", "-m", "5", "-s", "2", "-t", "alice@example.org")
    smtp_source(host, *source, port=dovecot.ports.lmtp)
    assert len(dovecot.files("alice@example.org")) == 5
