"""What each check says of a site that differs in one thing from one that works.

The settings are what Debian's `doveconf -n` and `postconf` printed (tests/doveconf, shortened).
The facts behind the refusals are in tests/integration/test_refusals.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest import config as config_module
from lmtp_atrest.config import Config
from lmtp_atrest.directory import Found
from lmtp_atrest.doctor import CHECKS, postfix, refusals, services
from lmtp_atrest.doctor.facts import Facts, User, read_script
from lmtp_atrest.doctor.findings import Finding
from lmtp_atrest.doctor.postfix import Postfix
from lmtp_atrest.doctor.secrecy import file_system
from lmtp_atrest.dovecot import Doveconf
from tests.test_dovecot import PRINTED

SCRIPT = Path(__file__).parents[1] / "deploy/dovecot/lmtp-atrest.lua"
MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
/dev/sdb1 /mnt/with\\040space xfs rw 0 0
tmpfs /mnt/with\\040space/ram tmpfs rw 0 0
/dev/sdb2 /mnt/with\\040space/ram ext4 rw 0 0
"""
ALICE = User("alice@example.org", "/var/vmail/alice@example.org", "")
OLD, NEW = "site-2.3", "site-2.4"


def facts(
    name: str, *edits: tuple[str, str], config: str = "", users: tuple[User, ...] = (), **more: Any
) -> Facts:
    text = (PRINTED / f"{name}.txt").read_text()
    for before, after in edits:
        assert before in text, before
        text = text.replace(before, after, 1)
    script = read_script(SCRIPT.read_text())
    known: dict[str, Any] = {"script": script, "mounts": MOUNTS, "users": users, **more}
    return Facts(config_module.parse(config), Doveconf.parse(text), **known)


def found(given: Facts) -> list[Finding]:
    return [finding for check in CHECKS.values() for finding in check(given)]


def names(findings: Iterator[Finding] | list[Finding]) -> list[str]:
    return [finding.name for finding in findings]


@pytest.mark.parametrize("name", [OLD, NEW])
def test_the_shipped_snippet_is_without_a_finding(name: str) -> None:
    answer = Found(ALICE.name, "", fields={"mail_temp_dir": "/dev/shm"})
    user = User(ALICE.name, ALICE.home, f"{ALICE.home}/Maildir", answer)
    assert found(facts(name)) == found(facts(name, users=(user,))) == []


@pytest.mark.parametrize("name", ["debian-12", "debian-13"])
def test_debian_s_own_settings_are_refused(name: str) -> None:
    assert {"mbox", "passdb-missing", "userdb-missing", "mail-crypt-missing"} <= set(
        names(refusals(facts(name)))
    )
    assert ("username-format" in names(refusals(facts(name)))) == (name == "debian-13")


def test_a_dovecot_that_says_nothing_is_refused() -> None:
    for version in ("2.3.19.1", "2.4.1"):
        said = Facts(Config(), Doveconf.parse(f"# {version} (x): /etc/dovecot.conf\n"))
        assert "guessed-format" in names(refusals(said))


LOCATION = "mail_location = maildir:~/Maildir"
BY_DOVECOT = "mail: {delivered_by: dovecot}"
INBOX = 'mail: {inbox: "{home}/in"}'
INDEX = 'mail: {index: ["/x/{user}"]}'
PREFETCH = "  driver = prefetch\n  result_success = continue-ok\n"
ENDS = "  driver = passwd-file\n  result_failure = return-fail\n}\nprotocol"
NO_CACHE = "unlock: {cache: none}"
SDBOX = f"{NO_CACHE}\n{BY_DOVECOT}"
TEAM = "namespace team {\n  prefix = team/\n  type = public\n}\nnamespace inbox {"


@pytest.mark.parametrize(
    ("name", "edits", "config", "refused"),
    [
        (OLD, [(LOCATION, "mail_location = mbox:~/mail")], NO_CACHE, ["mbox"]),
        (OLD, [(LOCATION, "mail_location = mbox:~/mail")], f"{NO_CACHE}\n{BY_DOVECOT}", ["mbox"]),
        (NEW, [("mail_driver = maildir", "mail_driver = mbox")], BY_DOVECOT, ["mbox"]),
        (OLD, [(LOCATION, "")], NO_CACHE, ["guessed-format"]),
        (NEW, [("mail_driver = maildir\n", "")], "", ["guessed-format"]),
        (OLD, [(LOCATION, "mail_location = sdbox:~/b")], NO_CACHE, ["not-maildir"]),
        (OLD, [(LOCATION, "mail_location = sdbox:~/b")], SDBOX, ["hard-links"]),
        (OLD, [("  maildir_copy_with_hardlinks = no\n", "")], "", ["hard-links"]),
        (NEW, [("mail_driver = maildir", "mail_driver = mdbox")], "", ["not-maildir"]),
        (NEW, [("mail_driver = maildir", "mail_driver = mdbox")], BY_DOVECOT, []),
        (NEW, [("mail_inbox_path = ~/Maildir\n", "")], "", ["inbox-unset"]),
        (NEW, [("mail_inbox_path = ~/Maildir\n", "")], BY_DOVECOT, []),
        (
            NEW,
            [("mail_inbox_path = ~/Maildir", "mail_inbox_path = /var/mail/%{user}")],
            "",
            ["inbox-elsewhere"],
        ),
        (OLD, [(LOCATION, f"{LOCATION}:INBOX=~/in")], NO_CACHE, ["inbox-elsewhere"]),
        (OLD, [(LOCATION, f"{LOCATION}:INBOX=~/in")], f"{NO_CACHE}\n{INBOX}", []),
        (OLD, [(LOCATION, f"{LOCATION}:LAYOUT=index")], NO_CACHE, ["inbox-elsewhere"]),
        (OLD, [(LOCATION, "mail_location = maildir:/m/%u")], NO_CACHE, ["inbox-elsewhere"]),
        (OLD, [("namespace inbox {", TEAM)], "", ["shared-namespace"]),
        (NEW, [("namespace inbox {", TEAM)], "", ["shared-namespace"]),
        (NEW, [("namespace inbox {", TEAM.replace("type", "disabled = yes\n  type"))], "", []),
        (OLD, [("mail_crypt", "mail_crypt notify replication")], "", ["replicator"]),
        (OLD, [], "atrest: {curve: x25519}", ["curve"]),
        (NEW, [], "atrest: {curve: x25519}", []),
        (NEW, [], 'atrest: {curve: x25519}\ndirectory: {readers: ["2.3"]}', ["curve"]),
        (
            NEW,
            [
                (
                    "mail_driver = maildir",
                    "mail_driver = sdbox\nmail_ext_attachment {\n path = /a\n}",
                )
            ],
            BY_DOVECOT,
            ["attachments"],
        ),
        (OLD, [("result_success = continue-ok\n", "")], "", ["passdb-order"]),
        (OLD, [("  skip = unauthenticated\n", "")], "", ["passdb-unverified"]),
        (NEW, [("  skip = unauthenticated\n", "")], "", ["passdb-unverified"]),
        (NEW, [("passdb site {", "passdb pam {\n}\npassdb site {")], "", ["passdb-order"]),
        (
            NEW,
            [("userdb prefetch {", "userdb passwd {\n}\nuserdb prefetch {")],
            "",
            ["userdb-order"],
        ),
        (OLD, [(PREFETCH, "")], "", ["userdb-order"]),
        (
            OLD,
            [
                (
                    "result_internalfail = return-fail\n  result_success = continue-ok\n  skip",
                    "skip",
                )
            ],
            "",
            ["userdb-internalfail"],
        ),
        (NEW, [("| lower}", "| username | lower}")], "", ["username-format"]),
        (
            OLD,
            [("mail_gid", "auth_username_format = %Ln\nmail_gid")],
            "",
            ["username-format"],
        ),
        (
            OLD,
            [("mail_gid", "auth_username_format = %n@%d\nmail_gid")],
            "",
            [],
        ),
        (
            OLD,
            [
                ("mail_gid", "auth_cache_size = 10M\nmail_gid"),
                ("blocking=yes", "blocking=yes cache_key=%u"),
            ],
            "",
            ["auth-cache"],
        ),
        (OLD, [("imap_fetch", "mail_plugins = quota\n  imap_fetch")], "", ["mail-crypt-missing"]),
        (NEW, [("mail_crypt = yes", "mail_crypt = yes\n  fts = yes")], "", ["full-text-search"]),
        (OLD, [], "unlock: {cache_root: /var/cache}", ["not-in-ram"]),
        (NEW, [], "unlock: {temp_dir: /tmp, cache_root: /x, cache: none}", ["not-in-ram"]),
        (OLD, [(LOCATION, f"{LOCATION}:INDEX=/x/%u")], INDEX, ["script-location"]),
        (OLD, [(LOCATION, f"{LOCATION}:INDEX=/x/%u")], f"{NO_CACHE}\n{INDEX}", []),
        (OLD, [(LOCATION, f"{LOCATION}:INDEX=/x/%u")], NO_CACHE, ["index-elsewhere"]),
        (OLD, [(LOCATION, f"{LOCATION}:INDEX=MEMORY")], NO_CACHE, []),
        (NEW, [("mail_driver", "mail_index_path = ~/i\nmail_driver")], "", ["index-elsewhere"]),
        (
            NEW,
            [("mail_driver", "mail_cache_path = /c/%{user}\nmail_driver")],
            INDEX,
            ["index-elsewhere"],
        ),
        (OLD, [("  location = ", "  location = maildir:~/Maildir")], "", ["namespace-location"]),
    ],
)
def test_what_would_lose_hide_or_show_mail_is_refused(
    name: str, edits: list[tuple[str, str]], config: str, refused: list[str]
) -> None:
    assert names(refusals(facts(name, *edits, config=config))) == refused


@pytest.mark.parametrize(
    ("name", "edits", "config", "expected"),
    [
        (
            OLD,
            [(LOCATION, f"{LOCATION}:LAYOUT=fs:UTF-8")],
            NO_CACHE,
            ["folder-style", "folder-names"],
        ),
        (NEW, [("mail_driver", "mailbox_list_layout = fs\nmail_driver")], "", ["folder-style"]),
        (
            NEW,
            [("mail_driver", "mailbox_list_layout = fs\nmail_driver")],
            "lmtp: {folder_style: fs, folder_names: utf-8}",
            ["folder-names"],
        ),
        (
            NEW,
            [("mail_path = ~/Maildir", "mail_path = ~/folders")],
            "",
            ["folders-elsewhere"],
        ),
        (OLD, [(LOCATION, "mail_location = maildir:/m/%1Ld")], NO_CACHE, ["inbox-unknown"]),
        (OLD, [("2.3.19", "2.2.36")], NO_CACHE, ["reader-version"]),
        (OLD, [("  result_failure = return-fail\n", "")], "", ["passdb-failure"]),
        (
            NEW,
            [("result_internalfail = return-fail\n  result_success = return-ok", "")],
            "",
            ["passdb-internalfail"],
        ),
        (OLD, [(PREFETCH, "  driver = prefetch\n")], "", ["userdb-result"]),
        (OLD, [(ENDS, "  driver = passwd-file\n}\nprotocol")], "", ["userdb-unknown"]),
        (OLD, [("mail_gid", "auth_cache_size = 10M\nmail_gid")], "", ["auth-cache"]),
        (
            OLD,
            [
                (
                    "service auth {",
                    "service imap-postlogin {\n executable = script-login /x\n}\ns {",
                )
            ],
            "",
            ["post-login"],
        ),
        (OLD, [("  mail_crypt_save_version = 0\n", "")], "", ["save-version"]),
        (NEW, [("crypt_write_algorithm = \n", "")], "", ["write-algorithm"]),
        (NEW, [("mail_temp_dir = /dev/shm\n", "")], "", ["mail-temp-dir"]),
        (OLD, [("  imap_fetch_failure = no-after\n", "")], "", ["imap-fetch-failure"]),
        (NEW, [], "unlock: {sockets: /run/other}", ["script-socket"]),
    ],
)
def test_what_works_less_well_is_said_and_not_refused(
    name: str, edits: list[tuple[str, str]], config: str, expected: list[str]
) -> None:
    given = facts(name, *edits, config=config)
    assert [f.name for f in found(given) if not f.refuses] == expected


def test_what_is_known_of_an_account_counts_before_what_holds_for_all(tmp_path: Path) -> None:
    def said(name: str, maildir: str, **fields: str) -> list[str]:
        user = User(ALICE.name, ALICE.home, maildir, Found(ALICE.name, "", fields=fields))
        shared = f"mail: {{shared_roots: [{tmp_path}/team]}}"
        return names(refusals(facts(name, users=(user,), config=shared)))

    usual = f"{ALICE.home}/Maildir"
    (tmp_path / "team").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "team")
    for place in ("team", "link"):
        maildir = f"{tmp_path}/{place}/alice"
        assert said(OLD, maildir) == ["inbox-elsewhere", "shared-root"]
    assert said(OLD, usual) == said(OLD, usual, home=ALICE.home) == []
    assert said(OLD, usual, home="/elsewhere") == ["inbox-elsewhere"]
    own = said(OLD, usual, mail="maildir:~/own")
    assert own == ["inbox-elsewhere", "user-location"]
    ours = "maildir:~/Maildir:INDEXCACHE=/dev/shm/lmtp-atrest/0123"
    assert said(OLD, usual, mail=ours) == said(NEW, usual, mail="maildir:~/own") == []
    assert said(OLD, usual, mail="mbox:~/mail") == ["mbox", "user-location"]
    assert said(NEW, usual, mail_inbox_path="~/own") == ["inbox-elsewhere"]


def test_a_site_of_names_without_a_domain_may_cut_it_off() -> None:
    user = User("alice", "/var/vmail/alice", "/var/vmail/alice/Maildir")
    cutting = facts(NEW, ("| lower}", "| username | lower}"), users=(user,))
    assert found(cutting) == []


def test_a_script_that_is_missing_or_has_a_home_in_its_location_is_told() -> None:
    assert names(found(facts(OLD, script=None))) == ["script-missing"]
    shipped = read_script(SCRIPT.read_text())
    for location, refused in (("maildir:%h/Maildir", ["script-location"]), ("maildir:~/%d", [])):
        constants = {**shipped, "MAIL_LOCATION": location}
        path = "{home}/" + ("Maildir" if refused else "example.org")
        config = f'mail: {{path: "{path}"}}'
        words = facts(
            OLD, (LOCATION, f"mail_location = {location}"), config=config, script=constants
        )
        assert names(refusals(words)) == refused


def test_accounts_that_dovecot_knows_by_another_name_are_told() -> None:
    renamed = User(ALICE.name, ALICE.home, "", Found("alice", ""))
    known = User(ALICE.name, ALICE.home, "", Found(ALICE.name, ""))
    assert names(services.names(facts(OLD, users=(renamed, known)))) == ["account-name"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/shm/lmtp-atrest", "tmpfs"),
        ("/dev/shmx", "ext4"),
        ("/mnt/with space/x", "xfs"),
        ("/mnt/with space/ram/x", "ext4"),
    ],
)
def test_a_path_is_on_the_file_system_mounted_last_and_deepest(path: str, kind: str) -> None:
    assert file_system(MOUNTS, Path(path)) == kind
    assert file_system("", Path(path)) == ""


# What `postconf -x` and `postconf -M lmtp/unix` of Debian 12 printed, with the snippet all.cf.
MAIN = """virtual_transport = lmtp:inet:127.0.0.1:8024
mailbox_transport =
local_transport = local:mx.example.org
relay_transport = relay
transport_maps =
queue_directory = /var/spool/postfix
mydestination = mx.example.org, localhost
virtual_alias_domains =
virtual_mailbox_domains = example.org
message_size_limit = 10240000
"""
MASTER = "lmtp       unix  -       -       y       -       -       lmtp\n"
UNIX = "lmtp: {{listen: ['unix:{}']}}"
INSIDE = UNIX.format("/var/spool/postfix/atrest/lmtp")


@pytest.mark.parametrize(
    ("edit", "config", "expected"),
    [
        (("", ""), "", []),
        (("127.0.0.1:8024", "[127.0.0.1]:8024"), "", []),
        (("127.0.0.1:8024", "localhost:8024"), "", []),
        (("127.0.0.1:8024", "127.0.0.1:24"), "", ["postfix-transport"]),
        (("inet:127.0.0.1:8024", "unix:private/dovecot-lmtp"), "", ["postfix-transport"]),
        (("inet:127.0.0.1:8024", "unix:private/dovecot-lmtp"), BY_DOVECOT, []),
        (("10240000", "10240000\nlmtp_destination_recipient_limit = 1"), BY_DOVECOT, []),
        (
            ("10240000", "10240000\nlmtp_destination_recipient_limit = 50"),
            BY_DOVECOT,
            ["postfix-recipients"],
        ),
        (
            ("inet:127.0.0.1:8024\n", "unix:private/dovecot-lmtp\ntransport_maps = hash:/x\n"),
            "",
            ["postfix-transport"],
        ),
        (("inet:127.0.0.1:8024", "unix:atrest/lmtp"), INSIDE, []),
        (
            ("inet:127.0.0.1:8024", "unix:/run/x"),
            UNIX.format("/run/x"),
            ["postfix-chroot"],
        ),
        (("localhost", "example.org"), "", ["postfix-domains"]),
        (("domains = example.org", "domains ="), "", ["postfix-domains"]),
        (("domains = example.org", "domains = hash:/etc/postfix/domains"), "", []),
        (("10240000", "0"), "", ["message-size"]),
        (("10240000", "104857600"), "", ["message-size"]),
    ],
)
def test_what_postfix_gets_wrong_is_told(
    edit: tuple[str, str], config: str, expected: list[str]
) -> None:
    read = Postfix.parse(MAIN.replace(*edit), MASTER)
    assert names(postfix.check(config_module.parse(config), read)) == expected


def test_another_mta_than_postfix_is_not_judged() -> None:
    assert postfix.read("/nonexistent/postconf") is None
    assert names(postfix.check(Config(), None)) == []
