"""The facts behind the refusals of `account enable`, with real Dovecot.

Each test sets a site up as no site should be, shows what becomes of an encrypted account's mail,
and that `enable` would have refused it, from what `doveconf -n` really prints.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_atrest.config import Config
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.doctor import refusals
from lmtp_atrest.doctor.facts import Facts
from lmtp_atrest.dovecot import Doveconf
from tests.integration.changed import Edit, changed
from tests.integration.site import ALICE, BOB, MESSAGE, PASSWORD, USERS
from tests.peers.dovecot import Imap
from tests.peers.root import Host, attempts, missing

pytestmark = pytest.mark.peers

LOCATION = "mail_location = maildir:~/Maildir"


def version(host: Host) -> str:
    return "2.3" if host.suite == "bookworm" else "2.4"


def storage(host: Host, **settings: str) -> list[Edit]:
    """Another place or form of mail: 2.3's location, or 2.4's settings."""
    if version(host) == "2.3":
        return [(LOCATION, f"mail_location = {settings.pop('location')}")]
    settings.pop("location")
    shipped = {
        "mail_driver": "maildir",
        "mail_path": "~/Maildir",
        "mail_inbox_path": "~/Maildir",
    }
    return [(f"\n{key} = {shipped[key]}\n", f"\n{key} = {new}\n") for key, new in settings.items()]


def test_what_debian_and_upstream_ship_is_refused(host: Host) -> None:
    def refused(*options: str) -> set[str]:
        printed = host.run("doveconf", "-n", *options).stdout.decode()
        return {finding.name for finding in refusals(Facts(Config(), Doveconf.parse(printed)))}

    missing_all = {"passdb-missing", "userdb-missing", "mail-crypt-missing"}
    assert refused() >= {"mbox", *missing_all}
    versions = "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"
    host.write("/etc/dovecot/empty.conf", versions if version(host) == "2.4" else "")
    upstream = refused("-c", "/etc/dovecot/empty.conf")
    assert upstream >= {"guessed-format", *missing_all}


def test_in_mbox_mail_is_stored_in_clear_with_the_key_at_hand(host: Host, shared: Path) -> None:
    mbox = {"mail_driver": "mbox", "mail_path": "~/mail", "mail_inbox_path": "~/inbox"}
    edits = storage(host, location="mbox:~/mail:INBOX=~/inbox", **mbox)
    with changed(host, shared, *edits, cache="none") as site:
        site.append()
        assert site.deliver(by_dovecot=True) == 0
        assert site.in_clear() == {"inbox"}
        assert site.deliver() == 0
        assert site.seen() == 2, "what lmtp-atrest stored is not shown"
        assert site.refused() == {"mbox"}
        site.configure(mail={"delivered_by": "dovecot"})
        assert site.refused() == {"mbox"}


HIDDEN = {
    "sdbox": ({"mail_driver": "sdbox", "mail_inbox_path": ""}, "sdbox:~/Maildir", "not-maildir"),
    "elsewhere": (
        {"mail_inbox_path": "~/elsewhere"},
        "maildir:~/Maildir:INBOX=~/elsewhere",
        "inbox-elsewhere",
    ),
    "no path": ({"mail_inbox_path": ""}, "maildir:~/Maildir:LAYOUT=index", ""),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_is_delivered_elsewhere_is_never_shown(host: Host, shared: Path, case: str) -> None:
    settings, location, name = HIDDEN[case]
    edits = storage(host, location=location, **settings)
    with changed(host, shared, *edits, cache="none") as site:
        assert site.deliver() == 0
        assert site.seen() == 0
        either = {"2.3": "inbox-elsewhere", "2.4": "inbox-unset"}
        assert site.refused() == {name or either[version(host)]}
        site.configure(mail={"delivered_by": "dovecot"})
        linked = case == "sdbox" and version(host) == "2.3"
        assert site.refused() == ({"hard-links"} if linked else set())


TEAM = {
    "2.3": "  location = maildir:/srv/team\n",
    "2.4": "  mail_driver = maildir\n  mail_path = /srv/team\n",
}


def test_in_a_shared_folder_others_cannot_read_what_an_encrypted_user_saves(
    host: Host, shared: Path
) -> None:
    team = "namespace team {\n  type = public\n  prefix = team.\n  separator = .\n"
    with changed(host, shared, add=f"{team}{TEAM[version(host)]}}}\n") as site:
        host.run("install", "-d", "-o", "mail", "-g", "mail", "/srv/team")
        bob = site.dovecot.login(BOB, USERS[BOB])
        bob.create("team.x")
        site.append("team.x")
        bob.select("team.x")
        with pytest.raises((Imap.abort, OSError)):
            bob.fetch("1", "(BODY.PEEK[])")
        bob.shutdown()
        for _ in attempts("Dovecot says why", log=site.dovecot.log_path):
            if "Private key not available" in site.dovecot.log():
                break
        assert site.refused() == {"shared-namespace"}


def test_dsync_has_no_key_and_stops(host: Host, shared: Path) -> None:
    with changed(host, shared) as site:
        assert site.deliver() == 0
        backup = ("doveadm", "backup", "-u", ALICE, "maildir:/tmp/backup")
        done = host.run(*backup, check=False)
        assert done.returncode == 75
        assert b"Private key not available" in done.stderr
        if version(host) == "2.3":
            on = "mail_plugins = $mail_plugins notify replication\n"
            host.write("/etc/dovecot/conf.d/98-replication.conf", on)
            local = host.path("/etc/dovecot/local.conf")
            local.write_text(local.read_text() + on)
            assert site.refused() == {"replicator"}


def test_x25519_kills_a_reader_of_2_3(host: Host, shared: Path) -> None:
    with changed(host, shared, curve=Curve.X25519) as site:
        site.configure(atrest={"curve": "x25519"})
        if version(host) == "2.4":
            assert site.refused() == set()
            site.configure(atrest={"curve": "x25519"}, directory={"readers": ["2.3"]})
        else:
            with pytest.raises((Imap.abort, OSError)):
                site.dovecot.login(ALICE, PASSWORD)
            assert "Panic: file dcrypt-openssl.c" in site.dovecot.log()
        assert site.refused() == {"curve"}


def test_where_the_domain_is_cut_off_mail_is_stored_in_clear(host: Host, shared: Path) -> None:
    if version(host) == "2.3":
        cut = changed(host, shared, add="auth_username_format = %Ln\n")
    else:
        whole, debian = "%{user | lower}", "%{user | username | lower}"
        cut = changed(host, shared, (whole, debian))
    with cut as site:
        site.dovecot.users["alice"] = PASSWORD  # who has both names at once is not even bounced
        site.dovecot.write_users()
        assert site.deliver(by_dovecot=True) == 0
        assert site.in_clear() >= {path.name for path in site.dovecot.files("alice")} > set()
        assert site.refused() == {"username-format"}


def test_without_mail_crypt_in_a_protocol_it_stores_in_clear(host: Host, shared: Path) -> None:
    with changed(host, shared, add="protocol imap {\n  mail_plugins = quota\n}\n") as site:
        client = site.dovecot.login(ALICE, PASSWORD)
        client.append("INBOX", "", "", MESSAGE)
        client.logout()
        (file,) = site.dovecot.files(ALICE)
        assert b"canary-body" in file.read_bytes()
        assert site.refused() == {"mail-crypt-missing"}


PREFETCH = "  driver = prefetch\n  result_success = continue-ok\n  result_failure = continue\n}\n"
SITE_USERDB = {
    "2.3": "userdb {\n  driver = passwd-file\n  args = username_format=%u /etc/dovecot/users\n}\n",
    "2.4": "userdb own {\n  driver = passwd-file\n  passwd_file_path = /etc/dovecot/users\n}\n",
}


def test_behind_the_site_s_userdb_ours_is_not_asked(host: Host, shared: Path) -> None:
    with changed(host, shared, (PREFETCH, PREFETCH + SITE_USERDB[version(host)])) as site:
        assert site.deliver(by_dovecot=True) == 0
        assert b"lmtp-canary" in site.dovecot.files(ALICE)[0].read_bytes()
        assert site.refused() == {"userdb-order"}


def test_a_failure_of_our_userdb_must_not_mean_not_encrypted(host: Host, shared: Path) -> None:
    failing = "  result_internalfail = return-fail\n}\n\n# 3. THE SITE'S OWN USERDB"
    with changed(host, shared, (failing, failing.partition("\n")[2])) as site:
        site.atrest.stop()
        assert site.deliver(by_dovecot=True) == 0
        assert b"lmtp-canary" in site.dovecot.files(ALICE)[0].read_bytes()
        assert site.refused() == {"userdb-internalfail"}


def test_attachments_outside_the_message_are_in_clear(host: Host, shared: Path) -> None:
    beside = {
        "2.3": "mail_attachment_dir = {0}\nmail_attachment_min_size = 1k\n",
        "2.4": "mail_ext_attachment_path = {0}\nmail_ext_attachment_min_size = 1k\n"
        "mail_ext_attachment {{\n  fs posix {{\n  }}\n}}\n",
    }
    attached = shared / "attached"
    add = beside[version(host)].format(attached)
    with changed(host, shared, storage="sdbox:~/box", add=add) as site:
        host.run("install", "-d", "-o", "mail", "-g", "mail", str(attached))
        client = site.dovecot.login(ALICE, PASSWORD)
        assert client.append("INBOX", "", "", with_attachment())[0] == "OK"
        client.logout()
        assert site.in_clear() == set()
        assert site.in_clear(attached) != set()
        site.configure(mail={"delivered_by": "dovecot"})
        assert site.refused("hard-links") == {"attachments"}


def with_attachment() -> bytes:
    return (
        b"From: a@example.net\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n'
        b"--x\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
        b"--x\r\nContent-Type: application/octet-stream\r\n"
        b'Content-Disposition: attachment; filename="a"\r\n\r\n'
        + b"canary-body\r\n" * 500
        + b"--x--\r\n"
    )


# ---- of 2.3 only: its index cache moves to RAM together with the location, or not at all


@pytest.fixture
def debian_12(shared: Path, ram: Path) -> Iterator[Host]:
    if reason := missing("bookworm"):
        pytest.skip(reason)
    with Host("bookworm", shared, ram, own_network=True) as running, running.network():
        yield running


def test_a_location_of_a_single_user_wins_and_puts_headers_on_the_disk(
    debian_12: Host, shared: Path
) -> None:
    with changed(debian_12, shared, user_field="mail=maildir:~/own") as site:
        site.append()
        assert site.in_clear() == {"dovecot.index.cache"}
        assert site.refused() == {"user-location", "inbox-elsewhere"}
        site.configure(unlock={"cache": "none"})
        assert site.refused() == {"inbox-elsewhere"}


def test_a_namespace_with_a_location_of_its_own_puts_headers_on_the_disk(
    debian_12: Host, shared: Path
) -> None:
    archive = "namespace archive {\n  prefix = old.\n  separator = .\n"
    archive += "  location = maildir:~/old\n}\n"
    with changed(debian_12, shared, add=archive) as site:
        client = site.dovecot.login(ALICE, PASSWORD)
        client.create("old.x")
        client.logout()
        site.append("old.x")
        assert site.in_clear() == {"dovecot.index.cache"}
        assert site.refused() == {"namespace-location"}


def test_the_script_must_say_dovecot_s_location_once_more(debian_12: Host, shared: Path) -> None:
    """Without it an encrypted user is shown another, empty mailbox."""
    with changed(debian_12, shared, (LOCATION, "mail_location = maildir:~/Mail")) as site:
        mail = site.dovecot.mail / ALICE / "Mail"
        for directory in (mail.parent, mail, mail / "new", mail / "cur", mail / "tmp"):
            debian_12.run("install", "-d", "-o", "mail", "-g", "mail", str(directory))
        (mail / "new/1.2.3").write_bytes(MESSAGE)
        assert site.seen() == 0
        assert "script-location" in site.refused()


def test_the_script_s_location_cannot_name_the_home(debian_12: Host, shared: Path) -> None:
    with changed(debian_12, shared, storage="maildir:%h/Maildir") as site:
        client = site.dovecot.imap()
        client.login(ALICE, PASSWORD)
        assert client.select()[0] == "NO"
        client.logout()
        assert site.refused() == {"script-location", "inbox-elsewhere"}
