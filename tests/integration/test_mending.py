"""Wrong sizes and damaged files in a mailbox that Dovecot 2.3 and 2.4 have open."""

import base64
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lmtp_atrest import users
from lmtp_atrest.conversion import Kind, mending, verify
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.unlock.client import GrantUnwrap
from lmtp_atrest.unlock.requests import ConvertGrant, Lookup, Role
from tests.integration.living import Living, secret
from tests.integration.site import ALICE, PASSWORD
from tests.peers.atrest import MAIL_USER
from tests.peers.dovecot import Imap

pytestmark = pytest.mark.peers

MESSAGES = 60
BODY = b"Subject: %d\nFrom: eve@example.net\n\n" + b"a line of text\n" * 30
COMPLAINT = re.compile(r"(Error|Warning|Panic|Fatal): ")


@pytest.fixture
def unwrap(site: Living) -> Iterator[GrantUnwrap]:
    granted = site.admin(ConvertGrant(ALICE, secret(PASSWORD), "verify", "100000"))
    made = GrantUnwrap(
        site.atrest.run / "unlock/convert.sock", Role.CONVERT, str(granted["grant"])
    )
    yield made
    made.close()


def fill(site: Living, *, damaged: int) -> None:
    """Sealed mail as Dovecot names it; of every two messages one says sizes of other mail."""
    key = PublicKey.from_pem(base64.b64decode(site.admin(Lookup(ALICE))["public_key"]))
    maildir = site.dovecot.mail / ALICE / "Maildir"
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    for number in range(MESSAGES):
        body = BODY % number
        size, crlf = len(body), len(body) + body.count(b"\n")
        if number % 2:
            size, crlf = size - 5 * (number % 3), crlf + 7
        sealed = dcrypt.seal(key, body)
        if number < damaged:
            sealed = sealed[: len(sealed) // 2]
        name = f"17{number:08}.M{number}P1.host,S={size},W={crlf}:2,"
        (maildir / "cur" / name).write_bytes(sealed)
    for path in (maildir.parent, *maildir.parent.rglob("*")):
        shutil.chown(path, MAIL_USER, MAIL_USER)


@contextmanager
def as_owner(site: Living) -> Iterator[Maildir]:
    """Alice's Maildir for its owner, as the commands open it."""
    user = users.find(MAIL_USER)
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        root = site.dovecot.mail
        with Maildir.open(root, root / ALICE / "Maildir", create=False) as box:
            yield box
    finally:
        os.seteuid(0)
        os.setegid(0)


def seen(client: Imap) -> dict[int, tuple[int, bytes]]:
    """By UID: the size that is told, and the whole message."""
    kind, data = client.uid("FETCH", "1:*", "(RFC822.SIZE BODY.PEEK[])")
    assert kind == "OK", data
    found = {}
    for part in data:
        if isinstance(part, tuple):
            match = re.search(rb"UID (\d+) RFC822.SIZE (\d+)", part[0])
            assert match, part[0]
            found[int(match[1])] = int(match[2]), part[1]
    return found


def flagging(client: Imap, stop: threading.Event) -> None:
    while not stop.is_set():
        for sign in "+-":
            assert client.uid("STORE", "1:*", f"{sign}FLAGS.SILENT", r"(\Flagged)")[0] == "OK"


def test_sizes_are_corrected_under_open_sessions(site: Living, unwrap: GrantUnwrap) -> None:
    fill(site, damaged=0)
    with site.dovecot.login(ALICE, PASSWORD) as watching:
        before = watching.numbers("SEARCH", "ALL")
        assert len(before) == MESSAGES
        logged, stop = len(site.dovecot.log()), threading.Event()
        with site.dovecot.login(ALICE, PASSWORD) as client:
            busy = threading.Thread(target=flagging, args=(client, stop))
            busy.start()
            try:
                with as_owner(site) as box:
                    wrong = verify(box, unwrap).faults
                    assert {fault.kind for fault in wrong} == {Kind.SIZES}
                    assert mending.correct(box, wrong) == len(wrong) == MESSAGES // 2
                    assert verify(box, unwrap).well
            finally:
                stop.set()
                busy.join()
        watching.noop()
        bodies = seen(watching)
    expected = {(BODY % number).replace(b"\n", b"\r\n") for number in range(MESSAGES)}
    assert {body for _, body in bodies.values()} == expected
    assert all(size == len(body) for size, body in bodies.values())
    assert set(bodies) == set(before)
    log = site.dovecot.log()[logged:]
    assert not [line for line in log.splitlines() if COMPLAINT.search(line)]


def test_damaged_messages_leave_the_inbox_and_nothing_is_lost(
    site: Living, unwrap: GrantUnwrap
) -> None:
    fill(site, damaged=4)
    with site.dovecot.login(ALICE, PASSWORD) as watching:
        before = watching.numbers("SEARCH", "ALL")
        with as_owner(site) as box:
            closed = [f for f in verify(box, unwrap).faults if f.kind is Kind.DAMAGED]
            assert mending.quarantine(box, closed, unwrap) == len(closed) == 4
            mending.correct(box, verify(box, unwrap).faults)
        watching.noop()
        bodies = seen(watching)
        assert set(bodies) == set(before[4:])
        assert watching.status("Quarantine", "(MESSAGES)")[1] == [b"Quarantine (MESSAGES 4)"]
