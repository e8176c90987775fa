"""Reading `doveconf -n`, with what Debian 12 and 13 print (tests/doveconf, shortened)."""

from pathlib import Path

import pytest

from lmtp_atrest.dovecot import (
    Doveconf,
    Place,
    expand,
    home_of,
    inbox_place,
    location_23,
    named_maildir,
    read_doveconf,
)
from lmtp_atrest.errors import TemporaryFailure

PRINTED = Path(__file__).parent / "doveconf"
BOTH_PLUGINS = {"mail_crypt", "imap_sieve"}


def printed(name: str) -> Doveconf:
    return Doveconf.parse((PRINTED / f"{name}.txt").read_text())


def test_blocks_stand_in_order_with_their_settings() -> None:
    old, new = printed("site-2.3"), printed("site-2.4")
    assert (old.version, new.version) == ("2.3", "2.4")
    assert [block.driver for block in old.root.of("userdb")] == ["prefetch", "lua", "passwd-file"]
    assert [block.name for block in new.root.of("userdb")] == ["prefetch", "lmtp-atrest", "site"]
    assert [block.driver for block in printed("debian-13").root.of("passdb")] == ["pam"]
    inner = [b for service in old.root.of("service") for b in service.of("unix_listener")]
    shared = {"group": "lmtp-atrest", "mode": "0660", "user": "mail"}
    assert shared in [block.settings for block in inner]
    assert old.protocols() == new.protocols() == {"imap", "pop3", "lmtp"}
    assert printed("debian-13").protocols() == {"imap", "lmtp", "pop3"}
    broken = Doveconf.parse("}\nnonsense\na = 1\n}\n")
    assert (broken.version, broken.get("a")) == ("", "1")


@pytest.mark.parametrize(
    ("text", "imap", "lmtp"),
    [
        ('mail_plugins = " mail_crypt"', {"mail_crypt"}, {"mail_crypt"}),
        (
            "mail_plugins = mail_crypt\nprotocol imap {\n mail_plugins = a b\n}",
            {"a", "b"},
            {"mail_crypt"},
        ),
        ("protocol !lmtp {\n mail_plugins = a\n}", {"a"}, set()),
        ("mail_plugins {\n a = yes\n b = no\n}", {"a"}, {"a"}),
        (
            "mail_plugins {\n mail_crypt = yes\n}\n"
            "protocol imap {\n mail_plugins {\n imap_sieve = yes\n}\n}\n"
            "protocol lmtp {\n mail_plugins {\n mail_crypt = no\n}\n}",
            BOTH_PLUGINS,
            set(),
        ),
        ("mail_plugins {\n a = yes\n}\nprotocol lmtp {\n mail_plugins = b\n}", {"a"}, {"b"}),
    ],
)
def test_plugins_are_those_of_the_protocol(text: str, imap: set[str], lmtp: set[str]) -> None:
    doveconf = Doveconf.parse(text)
    assert (doveconf.plugins("imap"), doveconf.plugins("lmtp")) == (imap, lmtp)


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("", Place("", "", "")),
        ("maildir:~/Maildir", Place("maildir", "~/Maildir", "~/Maildir")),
        ("maildir:~/m:LAYOUT=fs:UTF-8", Place("maildir", "~/m", "~/m", "fs", utf8=True)),
        ("maildir:~/m:INBOX=~/in:INDEX=/x", Place("maildir", "~/m", "~/in", indexes=("/x",))),
        ("maildir:~/m:LAYOUT=index", Place("maildir", "~/m", "", "index")),
        ("mbox:~/mail:INBOX=/var/mail/%u", Place("mbox", "~/mail", "/var/mail/%u")),
    ],
)
def test_a_location_of_2_3_is_taken_apart(location: str, place: Place) -> None:
    assert location_23(location) == place


def test_what_the_user_database_says_comes_before_the_configuration() -> None:
    old, new = printed("site-2.3"), printed("site-2.4")
    assert inbox_place(old) == inbox_place(new) == Place("maildir", "~/Maildir", "~/Maildir")
    assert inbox_place(old, {"mail": "maildir:~/own"}).inbox == "~/own"
    assert inbox_place(new, {"mail_path": "~/own"}) == Place("maildir", "~/own", "~/Maildir")
    assert inbox_place(new, {"mail": "maildir:~/own"}).path == "~/Maildir"
    assert inbox_place(printed("debian-12")).driver == "mbox"
    assert inbox_place(printed("debian-13")).inbox == "/var/mail/%{user}"
    assert home_of(old, "a@b", {}, "/else") == home_of(new, "a@b", {}, "/else") == "/var/vmail/a@b"
    assert home_of(old, "a@b", {"home": "/own"}, "") == "/own"
    assert home_of(Doveconf.parse(""), "a@b", {}, "/else") == "/else"


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("~/Maildir", "/h/Maildir"),
        ("%h/%d/%n/", "/h/example.org/alice"),
        ("/srv/%Lu", "/srv/alice@example.org"),
        ("%{home}/mail", "/h/mail"),
        ("/srv/%{user | domain}/%{user|username|lower}", "/srv/example.org/alice"),
        ("/srv/%{domain}/%{user | lower}", "/srv/example.org/alice@example.org"),
        ("/srv/%1.2Hu", None),
        ("%{user | sha256}", None),
        ("", None),
    ],
)
def test_templates_are_filled_in_or_not_understood(template: str, path: str | None) -> None:
    assert expand(template, "alice@example.org", "/h") == path


def test_a_doveconf_that_fails_is_said_with_the_way_out() -> None:
    assert read_doveconf("echo '# 2.3'") == "# 2.3\n"
    for command in ("/nonexistent/doveconf -n", "false", "'unclosed"):
        with pytest.raises(TemporaryFailure, match=r"directory\.doveconf"):
            read_doveconf(command)


@pytest.mark.parametrize(
    ("fields", "maildir"),
    [
        ({"home": "/srv/a", "uid": "8"}, None),
        ({"mail": "maildir:/mail/a:INDEX=/index/a"}, "/mail/a"),
        ({"mail": "maildir:~/Mail"}, "/srv/a/Mail"),
        ({"mail": "maildir:/mail/%d/%n"}, "/mail/example.org/alice"),
        ({"mail_path": "/mail/a", "mail_inbox_path": "/mail/a"}, "/mail/a"),
        ({"mail_driver": "maildir"}, None),
    ],
)
def test_a_maildir_that_the_user_database_names(
    fields: dict[str, str], maildir: str | None
) -> None:
    assert named_maildir("alice@example.org", "/srv/a", fields) == maildir


@pytest.mark.parametrize(
    "fields", [{"mail": "mbox:~/mail"}, {"mail": "maildir:/mail/%Ls"}, {"mail_driver": "sdbox"}]
)
def test_mail_that_lies_in_no_maildir_waits(fields: dict[str, str]) -> None:
    with pytest.raises(TemporaryFailure, match="no Maildir"):
        named_maildir("alice@example.org", "/srv/a", fields)
