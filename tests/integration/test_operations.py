"""Each block of docs/operations.md, typed as it stands into fresh Debian 12 and 13.

Real: Debian's files and programs, Postfix, Exim, Dovecot, users, sockets, ports. Stand-ins (in
`standins/`): apt (the packages are there), git and make (the source and this Python's packages are
there), systemctl (starts what the unit says).
"""

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import operations
from tests.integration.machine import (
    ALICE,
    BOB,
    CAROL,
    MAIL,
    SMTP,
    imap,
    machine,
    password,
    postfix,
    start_exim,
)
from tests.integration.operations import Reader
from tests.peers.root import Host, attempts, missing

pytestmark = pytest.mark.peers

INSTALLED, ACCOUNTS = ("Install", "Dovecot"), "Accounts"
POSTFIX, EXIM = "Postfix: a pilot, then all", "Exim: a pilot, then all"
DOVECOT, QUOTA = "Dovecot's own LMTP goes on delivering", "Quota"
DOCTOR, SITE_KEYS = "Is the site set up right?", "Site keys"
BACKUP = "Backup"
OURS, DOVECOTS = "lmtp-atrest", "Dovecot"


@pytest.fixture(params=["bookworm", "trixie"])
def host(shared: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    if reason := missing(request.param):
        pytest.skip(reason)
    with machine(request.param, shared) as running:
        yield running


@pytest.fixture
def reader(host: Host) -> Reader:
    return Reader(host, password(ALICE))


def files(host: Host, name: str) -> list[Path]:
    maildir = host.path(f"{MAIL}/{name}/Maildir")
    return [path for sub in ("cur", "new") for path in maildir.glob(f"{sub}/*")]


def sent(host: Host, text: str) -> dict[str, str]:
    """Who delivered a message to alice, whose copy is ciphertext, and to bob, whose is not."""
    before = {name: files(host, name) for name in (ALICE, BOB)}
    message = f"From: eve@example.net\r\nSubject: {text}\r\n\r\n{text}-canary\r\n".encode()
    with smtplib.SMTP("127.0.0.1", SMTP, timeout=30) as smtp:
        assert smtp.sendmail("eve@example.net", [ALICE, BOB], message) == {}
    for _ in attempts(f"{text} arrives", log=host.path(operations.LOG)):
        if all(len(files(host, name)) > len(before[name]) for name in before):
            break
    assert not any(f"{text}-canary".encode() in path.read_bytes() for path in files(host, ALICE))
    assert any(f"{text}-canary".encode() in path.read_bytes() for path in files(host, BOB))
    by = {}
    for name in before:
        client = imap(name)
        (body,) = (body for body in client.bodies() if f"{text}-canary".encode() in body)
        client.logout()
        by[name] = OURS if b"(lmtp-atrest)" in body else DOVECOTS
    return by


def answer_to_a_large_message(name: str) -> str:
    message = b"Subject: large\r\n\r\n" + b"more of it\r\n" * 200
    with smtplib.SMTP("127.0.0.1", SMTP, timeout=30) as smtp:
        try:
            smtp.sendmail("eve@example.net", [name], message)
        except smtplib.SMTPRecipientsRefused as refused:
            code, text = refused.recipients[name]
            return f"{code} {text.decode()}"
    return "250"


def test_every_example_is_typed_in_by_one_of_the_tests_below() -> None:
    typed = sum(len(blocks) for blocks in operations.pages().values())
    assert operations.TEXT.count("```") == 2 * typed
    assert not [line for line in operations.TEXT.splitlines() if line.startswith("    ")]


def test_behind_postfix(host: Host, reader: Reader) -> None:
    with postfix(host) as running:
        reader.follow(*INSTALLED)
        pilot, everything, back = reader.open(POSTFIX)
        reader.type(pilot)
        reader.follow(ACCOUNTS)
        assert sent(host, "pilot") == {ALICE: OURS, BOB: DOVECOTS}
        reader.type(everything)
        assert sent(host, "all") == {ALICE: OURS, BOB: OURS}
        reader.follow(QUOTA)
        for _ in attempts("Dovecot is asked whether there is room", log=running.log_path):
            if "552 5.2.2" in answer_to_a_large_message(CAROL):
                break
        reader.follow(DOCTOR)  # fails where it finds a problem
        assert "same" in reader.follow(BACKUP)
        reader.follow(SITE_KEYS)
        assert sent(host, "with a new site key") == {ALICE: OURS, BOB: OURS}
        reader.type(back)
        assert sent(host, "back") == {ALICE: DOVECOTS, BOB: DOVECOTS}
        reader.follow(DOVECOT)
        assert sent(host, "by Dovecot") == {ALICE: DOVECOTS, BOB: DOVECOTS}
        assert "status=deferred" not in running.log()
    assert set(reader.left) == {EXIM}


def test_behind_exim(host: Host, reader: Reader) -> None:
    start_exim(host)
    reader.follow(*INSTALLED)
    prepared, pilot, everything, back = reader.open(EXIM)
    reader.type(prepared)
    assert "transport = lmtp_atrest" in reader.type(pilot)
    reader.follow(ACCOUNTS)
    assert sent(host, "pilot") == {ALICE: OURS, BOB: DOVECOTS}
    host.run("sed", "-i", "s/config='false'/config='true'/", "/etc/exim4/update-exim4.conf.conf")
    host.run("update-exim4.conf")
    assert sent(host, "split") == {ALICE: OURS, BOB: DOVECOTS}
    reader.type(everything)
    assert sent(host, "all") == {ALICE: OURS, BOB: OURS}
    reader.type(back)
    assert sent(host, "back") == {ALICE: DOVECOTS, BOB: DOVECOTS}
    settings, snippet, _for_postfix, doctor = reader.open(DOVECOT)
    for block in (settings, snippet, doctor):
        reader.type(block)
    assert sent(host, "by Dovecot") == {ALICE: DOVECOTS, BOB: DOVECOTS}
    assert " == " not in host.path("/var/log/exim4/mainlog").read_text(), "nothing had to wait"
    assert set(reader.left) == {POSTFIX, QUOTA, DOCTOR, BACKUP, SITE_KEYS}
