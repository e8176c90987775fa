"""`lmtp-atrest doctor` on a running site: nothing to say of a healthy one, else what broke."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_atrest.doctor.services import as_user
from tests.cli.calling import Result, call
from tests.integration.changed import ChangedSite, changed
from tests.integration.site import ALICE, BOB, DEPLOY, USERS
from tests.peers.atrest import MAIL_USER
from tests.peers.postfix import Postfix
from tests.peers.root import Host

pytestmark = pytest.mark.peers


@pytest.fixture
def site(host: Host, shared: Path) -> Iterator[ChangedSite]:
    with changed(host, shared) as running:
        yield running


@pytest.fixture
def postfix(site: ChangedSite, shared: Path) -> Iterator[Postfix]:
    snippet = (DEPLOY / "postfix/all.cf").read_text()
    main = {"virtual_mailbox_domains": "example.org"}
    ours = snippet.replace("127.0.0.1:8024", f"127.0.0.1:{site.atrest.port}")
    with Postfix(site.host, shared, main, ours) as running:
        yield running


def doctor(site: ChangedSite, *options: str) -> Result:
    postconf = site.host.script(site.atrest.shared / "postconf", "postconf")
    return call("doctor", "-c", site.config_path, "--postconf", str(postconf), *options)


def told(result: Result) -> dict[str, str]:
    return {line["name"]: line["level"] for line in json.loads(result.stdout) if "name" in line}


def test_a_healthy_site_is_healthy_and_what_breaks_is_found(
    site: ChangedSite, postfix: Postfix
) -> None:
    healthy = doctor(site)
    assert healthy.returncode == 0, healthy.stdout
    assert {line.split()[0] for line in healthy.stdout.splitlines()} == {"ok"}
    local = site.host.path("/etc/dovecot/local.conf")
    whole = local.read_text()
    local.write_text(f"{whole}protocol imap {{\n  mail_plugins = quota\n}}\n")
    postfix.configure(mydestination="example.org")
    script = site.atrest.shared / "lmtp-atrest.lua"
    script.write_text(script.read_text().replace("dovecot.sock", "other.sock"))
    site.configure(lmtp={"listen": ["unix:/run/lmtp-atrest/lmtp"]})
    broken = doctor(site, "--json")
    assert broken.returncode == 10
    assert told(broken) == {
        "mail-crypt-missing": "problem",
        "script-socket": "problem",
        "lmtp-down": "problem",
        "postfix-chroot": "problem",
        "postfix-transport": "warning",
    }
    printed = doctor(site).stdout
    assert "problem  mail-crypt-missing: " in printed
    assert "(account enable refuses)\n         → add mail_crypt there" in printed


def test_what_does_not_answer_is_found(site: ChangedSite) -> None:
    listener = f"service auth {{\n  unix_listener {site.dovecot.sockets}/auth-userdb {{\n"
    local = site.host.path("/etc/dovecot/local.conf")
    local.write_text(f"{local.read_text()}{listener}    mode = 0600\n    user = root\n  }}\n}}\n")
    site.dovecot.stop()
    site.dovecot.start()
    unused = {"postfix-transport": "warning"}  # Postfix is there, and hands us nothing
    silent = {"directory": "problem", "directory-unlock": "warning"}
    assert told(doctor(site, "--json")) == silent | unused
    assert f"{MAIL_USER} gets no answer" in doctor(site).stdout
    assert as_user(MAIL_USER, lambda: str(1 // 0)) == "the look-up broke off"
    site.atrest.stop()
    down = told(doctor(site, "--json"))
    assert down.items() >= {"unlock-down": "problem", "lmtp-down": "problem"}.items()
    assert down["accounts"] == "warning"
    site.configure(directory={"doveconf": "false"})
    assert told(doctor(site, "--json"))["doveconf"] == "problem"


def test_enable_and_doctor_say_the_same(site: ChangedSite) -> None:
    call("account", "add", "-c", site.config_path, BOB)
    site.configure(mail={"shared_roots": [str(site.dovecot.mail / BOB)]})
    refused = call("account", "enable", "-c", site.config_path, BOB, secret=USERS[BOB])
    assert refused.returncode == 10
    assert f"shared-root: the Maildir of {BOB}" in refused.stderr
    assert "shared-root" in told(doctor(site, "--json"))
    assert ALICE not in refused.stderr
