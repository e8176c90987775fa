"""The command line beside a real Dovecot: adding and encrypting an account as an operator does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.calling import Result, call
from tests.integration.site import ALICE, BOB, PASSWORD, USERS, deploy
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.root import Host

pytestmark = pytest.mark.peers

# Only what the installed site has beside the snippet; the AtRest of these tests has no account.
SHARED_NAMESPACE = {
    "2.3": """
namespace team {
  type = public
  prefix = team/
  separator = /
  location = maildir:/srv/team
}
""",
    "2.4": """
namespace team {
  type = public
  prefix = team/
  separator = /
  mail_driver = maildir
  mail_path = /srv/team
}
""",
}


class CommandLine:
    """`lmtp-atrest` with the running site's configuration, which asks Dovecot's `doveconf -n`."""

    def __init__(self, atrest: AtRest, shared: Path) -> None:
        host = atrest.dovecot.host
        settings = yaml.safe_load(atrest.config_path.read_text())
        doveconf = host.script(shared / "doveconf", "doveconf")
        settings["directory"]["doveconf"] = f"{doveconf} -n"
        self.path = shared / "cli.yaml"
        self.path.write_text(yaml.safe_dump(settings))
        self.path.chmod(0o644)

    def run(self, *arguments: str, secret: str | None = None) -> Result:
        return call(*arguments[:2], "-c", self.path, *arguments[2:], secret=secret)


@pytest.fixture
def empty_site(host: Host, shared: Path) -> Iterator[tuple[Dovecot, CommandLine]]:
    (shared / "run").mkdir()
    host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    prepared = Dovecot(host, shared, USERS)
    deploy(prepared)
    with prepared as dovecot, AtRest(shared, dovecot) as atrest:
        yield dovecot, CommandLine(atrest, shared)


def test_an_account_is_added_encrypted_used_and_exported(
    empty_site: tuple[Dovecot, CommandLine], shared: Path
) -> None:
    dovecot, cli = empty_site
    unknown = cli.run("account", "add", "nobody@example.org")
    assert (unknown.returncode, unknown.stdout) == (6, "")
    added = cli.run("account", "add", "Alice@Example.org", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["maildir"] == str(dovecot.mail / ALICE / "Maildir")
    before = dovecot.login(ALICE, PASSWORD)  # a session without the key: enable has to end it
    assert cli.run("account", "enable", ALICE, secret=PASSWORD).returncode == 0
    with pytest.raises((Imap.abort, OSError)):
        before.noop()
    before.shutdown()
    client = dovecot.login(ALICE, PASSWORD)
    client.append("INBOX", "", "", b"Subject: written after\r\n\r\nsecret\r\n")
    client.logout()
    listed = cli.run("mail", "list", ALICE, "--json", secret=PASSWORD)
    (only,) = json.loads(listed.stdout)
    assert (only["subject"], only["sealed"]) == ("written after", True)
    exported = shared / "exported"
    assert cli.run("mail", "export", ALICE, str(exported), secret=PASSWORD).returncode == 0
    (copy,) = (path for path in exported.rglob("*") if path.is_file())
    assert copy.read_bytes() == b"Subject: written after\n\nsecret\n"


def test_a_site_that_would_lose_mail_is_refused_with_the_way_out(
    host: Host, empty_site: tuple[Dovecot, CommandLine]
) -> None:
    dovecot, cli = empty_site
    assert cli.run("account", "add", BOB).returncode == 0
    host.write("/etc/dovecot/conf.d/98-team.conf", SHARED_NAMESPACE[dovecot.version])
    refused = cli.run("account", "enable", BOB, secret=USERS[BOB])
    assert refused.returncode == 10
    assert "--accept shared-namespace" in refused.stderr
    assert json.loads(cli.run("account", "show", BOB, "--json").stdout)["state"] == "plain"
    accept = ("--accept", "shared-namespace")
    accepted = cli.run("account", "enable", BOB, *accept, secret=USERS[BOB])
    assert accepted.returncode == 0, accepted.stderr
