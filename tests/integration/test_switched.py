"""An account is switched on and off again by its administrator, with a client connected.

MANY_MESSAGES=10000 makes it as many as that.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.living import Living
from tests.integration.mailprogram import content, mailbox, validities
from tests.integration.site import ALICE, PASSWORD
from tests.integration.test_conversion import COMPLAINT, fill
from tests.peers.atrest import for_all_users

pytestmark = pytest.mark.peers

MESSAGES = int(os.environ.get("MANY_MESSAGES", "400"))

ENDED_BY_US = "Killed with signal 15"


def command(site: Living, *words: str, secret: str = PASSWORD) -> str:
    """Run lmtp-atrest in a process of its own, for it gives its rights away; what it printed."""
    reading, writing = os.pipe()
    os.write(writing, f"{secret}\n".encode())
    os.close(writing)
    options = ["-c", str(site.atrest.config_path), "--password-fd", str(reading)]
    group, verb, *rest = words
    stash = for_all_users(site.atrest.shared / f"python-{reading}-{time.monotonic_ns()}")
    ours = [*stash, sys.executable, "-m", "lmtp_atrest", group, verb, *options, *rest]
    done = subprocess.run(ours, pass_fds=[reading], capture_output=True, text=True, check=False)
    os.close(reading)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(maildir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in maildir.rglob("*,S=*") if p.parent.name != "tmp"}


def test_switching_on_and_off_again_is_uneventful(site: Living) -> None:
    maildir = site.dovecot.mail / ALICE / "Maildir"
    fill(maildir, MESSAGES)
    with site.dovecot.login(ALICE, PASSWORD) as client:
        before, valid = mailbox(client), validities(client)
        assert len(before) == MESSAGES
        plain, logged = files(maildir), len(site.dovecot.log())
        command(site, "conversion", "run", ALICE)
        assert mailbox(client) == before
        assert all(raw.startswith(b"CRYPTED") for raw in files(maildir).values())
        assert f"{MESSAGES} encrypted, 0 plain" in command(site, "mail", "verify", ALICE)
        command(site, "account", "disable", ALICE)
        command(site, "conversion", "run", "--to", "decrypt", ALICE)
        assert files(maildir) == plain
    # The account became plain, which ended its sessions.
    with site.dovecot.login(ALICE, PASSWORD) as client:
        assert (mailbox(client), validities(client)) == (before, valid)
    lines = site.dovecot.log()[logged:].splitlines()
    complaints = [line for line in lines if COMPLAINT.search(line)]
    assert not [line for line in complaints if ENDED_BY_US not in line]
    assert plain and content("before-0") in plain.values()
