"""`account key`, and docs/openpgp.md: its blocks typed as they stand, on a running site."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PASSWORD, RunningSite
from tests.mime.owners import GnuPG, SMIMEOwner, original, pgp_payload

DOCS = Path(__file__).parents[2] / "docs" / "openpgp.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
MESSAGE = b"From: eve@example.net\r\nSubject: canary\r\n\r\nbody canary\r\n"
# The command of two words with this site's configuration put in.
SHIM = '#!/bin/sh\na=$1 b=$2; shift 2\nexec "{python}" -m lmtp_atrest $a $b -c "{config}" "$@"\n'


@pytest.fixture
def desk(tmp_path: Path, running: RunningSite) -> Iterator[tuple[Path, GnuPG]]:
    """Where the page is typed: with alice's keyring, bob's certificate and the command."""
    shim = tmp_path / "bin" / "lmtp-atrest"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable, config=running.config))
    shim.chmod(0o755)
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = GnuPG(home)
    gpg("--quick-gen-key", ALICE, "rsa2048", "sign,encrypt", "0")
    yield tmp_path, gpg
    gpg.close()


def typed(block: str, desk: Path) -> str:
    path = f"{desk / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GNUPGHOME": str(desk / "gnupg")}
    done = subprocess.run(
        ["bash", "-euc", block], cwd=desk, env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def stored(running: RunningSite, name: str) -> list[bytes]:
    new = running.root / "mail" / name / "Maildir" / "new"
    return [path.read_bytes() for path in sorted(new.iterdir())]


def test_the_page_as_it_stands(running: RunningSite, desk: tuple[Path, GnuPG]) -> None:
    where, gpg = desk
    owner = SMIMEOwner()
    (where / "bob.pem").write_bytes(owner.pem)
    export, alice, shown, bob, remove = BLOCKS
    typed(export, where)
    (fingerprint,) = re.findall("fpr:+([0-9A-F]+)", gpg("--list-keys", "--with-colons").decode())
    for block in (alice, shown):
        output = typed(block, where)
        assert fingerprint in output
        assert f"{ALICE}\n" in output
        assert "RSA 2048" in output
        assert "expires: never" in output
    assert "CN=Alice" in typed(bob, where)

    assert running.deliver([ALICE, BOB], MESSAGE) == ["250 2.0.0 stored"] * 2
    (for_alice,), (for_bob,) = stored(running, ALICE), stored(running, BOB)
    assert b"canary" not in for_alice + for_bob
    assert original(gpg("--decrypt", given=pgp_payload(for_alice))) == MESSAGE
    assert original(owner.decrypt(for_bob)) == MESSAGE

    assert f"{ALICE}: changed, plain, epoch 3" in typed(remove, where)
    assert running.deliver([ALICE], MESSAGE) == ["250 2.0.0 stored"]
    assert sum(b"canary" in content for content in stored(running, ALICE)) == 1


def test_what_is_said_and_refused(running: RunningSite, tmp_path: Path) -> None:
    owner, key, certificate = SMIMEOwner(), tmp_path / "key.pem", tmp_path / "carol.pem"
    certificate.write_bytes(owner.pem)
    key.write_bytes(owner.private_pem() + owner.pem)
    assert running.run("account", "add", CAROL).returncode == 0
    assert running.run("account", "enable", CAROL, secret=PASSWORD).returncode == 0

    both = running.run("account", "key", CAROL, "--smime", str(certificate), "--remove")
    assert (both.returncode, "one kind" in both.stderr) == (2, True)
    private = running.run("account", "key", CAROL, "--smime", str(key))
    assert (private.returncode, "private key" in private.stderr) == (2, True)
    other = running.run("account", "key", CAROL, "--openpgp", str(certificate))
    assert (other.returncode, "OpenPGP" in other.stderr) == (8, True)
    none = running.run("account", "key", CAROL, "--remove")
    assert (none.returncode, "no certificates" in none.stderr) == (10, True)

    given = running.run("account", "key", CAROL, "--smime", str(certificate))
    assert given.returncode == 0
    assert "the password opens it" in given.stderr
    shown = json.loads(running.run("account", "show", CAROL, "--json").stdout)
    assert (shown["state"], shown["kind"]) == ("encrypted", "smime")
    assert "CN=Alice" in running.run("account", "show", CAROL).stdout
    assert "encrypted (smime)" in running.run("account", "list").stdout
    listed = json.loads(running.run("account", "key", CAROL, "--json").stdout)
    assert [one["trouble"] for one in listed] == [""]
    for arguments in (("run", CAROL), ("run", CAROL, "--to", "rewrap")):
        secret = PASSWORD if "rewrap" in arguments else None
        refused = running.run("conversion", *arguments, secret=secret)
        assert (refused.returncode, "not converted for this kind" in refused.stderr) == (10, True)
    assert running.run("account", "add", "dora@example.org").returncode == 0
    dora = ("account", "key", "dora@example.org", "--smime", str(certificate))
    assert "in plain" in running.run(*dora).stderr
    unread = running.run("mail", "list", "dora@example.org", secret=PASSWORD)
    assert (unread.returncode, "nothing here opens" in unread.stderr) == (10, True)
    everybody = running.run("conversion", "run", "--all")
    assert (everybody.returncode, CAROL in everybody.stdout) == (0, False)
