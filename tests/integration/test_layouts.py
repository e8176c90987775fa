"""Mail delivered by our LMTP lies where Dovecot looks for it, in each layout a site may have.

In each the folders are made by an IMAP client, mail for them is delivered by detail and by header
rule, read with the password, listed by the command line, and in clear in RAM at most.
"""

import json
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.calling import call
from tests.integration.site import ALICE, BOB, CAROL, PASSWORD, USERS, deploy
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.root import Host

pytestmark = pytest.mark.peers

MAGIC = b"CRYPTED\x03\x07\x02"
# What people call a folder, and what a client calls it that never heard of UTF8=ACCEPT.
FOLDERS = {
    "Entwürfe/2026": "Entw&APw-rfe/2026",
    "R&D": "R&-D",
    "日本語": "&ZeVnLIqe-",
    "Junk": "Junk",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """A site's mail location, as each version says it, and what lmtp-atrest is told."""

    location: str  # of 2.3, after the Maildir
    settings: str  # of 2.4
    lmtp: dict[str, str] = field(default_factory=dict)
    mail: dict[str, str] = field(default_factory=dict)
    separator: str = "/"
    place: str = "~"  # what the Maildir lies in, in the words of 2.3


FS = "mailbox_list_layout = fs\n"
UTF8 = "mailbox_list_utf8 = yes\n"
LAYOUTS = {
    "maildir++": Layout("", "", separator="."),
    "fs": Layout(":LAYOUT=fs", FS, {"folder_style": "fs"}),
    "utf-8": Layout(":UTF-8", UTF8, {"folder_names": "utf-8"}),
    # On 2.4 an empty mail_inbox_path means Maildir/.INBOX.
    "inbox-inside": Layout(
        ":INBOX=~/Maildir/.INBOX", "mail_inbox_path =\n", mail={"inbox": "{maildir}/.INBOX"}
    ),
    "index-and-inbox-beside": Layout(
        ":INBOX=~/inbox:INDEX=~/index:CONTROL=~/control",
        "mail_inbox_path = ~/inbox\nmail_index_path = ~/index\nmail_control_path = ~/control\n",
        mail={"inbox": "{home}/inbox"},
    ),
    "words": Layout("", "", place="{mail}/%d/%n"),
    "fs-utf-8-inbox": Layout(
        ":LAYOUT=fs:UTF-8:INBOX=~/Maildir/INBOX",
        f"{FS}{UTF8}mail_inbox_path = ~/Maildir/INBOX\n",
        {"folder_style": "fs", "folder_names": "utf-8"},
        {"inbox": "{maildir}/INBOX"},
    ),
}


@dataclass(frozen=True, slots=True)
class Site:
    """A running site with one layout; alice is encrypted."""

    shared: Path
    dovecot: Dovecot
    atrest: AtRest
    layout: Layout

    @property
    def home(self) -> Path:
        """What all of alice's mail lies in."""
        return home_of_alice(self.dovecot, self.layout)

    def deliver(self, text: str, *recipients: str, header: str = "") -> None:
        message = f"Subject: {text}-canary\r\n{header}\r\n{text}-canary\r\n".encode()
        with smtplib.LMTP("127.0.0.1", self.atrest.port, timeout=60) as lmtp:
            for recipient in recipients:  # smtplib reads one reply to a message
                options = ("SMTPUTF8", "BODY=8BITMIME")
                assert lmtp.sendmail("s@example.net", [recipient], message, options) == {}

    def as_client_says(self, folder: str) -> str:
        return FOLDERS[folder].replace("/", self.layout.separator)

    def subjects(self, client: Imap, folder: str) -> set[str]:
        """What a client shows of a folder; the headers then are in Dovecot's cache."""
        assert client.select(f'"{folder}"')[0] == "OK"
        _, data = client.fetch("1:*", "(ENVELOPE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        parts = (part[1] for part in data if isinstance(part, tuple))
        return {part.decode().split()[1].removesuffix("-canary") for part in parts}

    def listed_by(self, client: Imap) -> set[str]:
        """The folders that a client is shown."""
        lines = [line for line in client.list()[1] if isinstance(line, bytes)]
        return {line.decode().split(f'"{self.layout.separator}" ')[1] for line in lines}

    def in_clear(self) -> list[str]:
        """The files on disk that hold a canary."""
        found = (path for path in self.shared.rglob("*") if path.is_file())
        holders = (path for path in found if b"-canary" in path.read_bytes())
        return [str(path.relative_to(self.shared)) for path in holders]

    def listed(self, name: str, password: str) -> dict[str, str]:
        """What `mail list` shows: the folder of each subject."""
        done = call("mail", "list", "-c", self.atrest.config_path, name, "--json", secret=password)
        assert done.returncode == 0, done.stderr
        listed = json.loads(done.stdout)
        assert all(message["sealed"] for message in listed)
        return {m["subject"].removesuffix("-canary"): m["folder"] for m in listed}


def deployed(dovecot: Dovecot, shared: Path, layout: Layout) -> Dovecot:
    (shared / "run").mkdir()
    dovecot.host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    storage = f"maildir:{layout.place.format(mail=dovecot.mail)}/Maildir"
    if dovecot.version == "2.3":
        deploy(dovecot, storage=storage + layout.location)
    else:
        storage = storage.replace("%d", "%{user | domain}").replace("%n", "%{user | username}")
        deploy(dovecot, storage=storage)
        dovecot.conf += layout.settings
    dovecot.conf += f"namespace inbox {{\n  inbox = yes\n  separator = {layout.separator}\n}}\n"
    return dovecot


def home_of_alice(dovecot: Dovecot, layout: Layout) -> Path:
    return dovecot.mail / (ALICE if layout.place == "~" else "example.org/alice")


@pytest.fixture(params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def site(host: Host, shared: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    layout: Layout = request.param
    with deployed(Dovecot(host, shared, USERS), shared, layout) as dovecot:
        atrest = AtRest(shared, dovecot, layout.lmtp, layout.mail)
        atrest.add(ALICE, PASSWORD, maildir=home_of_alice(dovecot, layout) / "Maildir")
        with atrest:
            yield Site(shared, dovecot, atrest, layout)


def test_every_folder_gets_its_mail_and_nothing_in_clear(site: Site) -> None:
    client = site.dovecot.login(ALICE, PASSWORD)
    for folder in FOLDERS:
        assert client.create(f'"{site.as_client_says(folder)}"')[0] == "OK"
    site.deliver("inbox", ALICE)
    site.deliver("nowhere", "alice+Nowhere@example.org")
    site.deliver("spam", ALICE, header="X-Spam-Flag: YES\r\n")
    for folder, subject in FOLDERS.items():
        site.deliver(subject, f"alice+{folder}@example.org")
    assert site.subjects(client, "INBOX") == {"inbox", "nowhere"}
    for folder, subject in FOLDERS.items():
        expected = {subject, "spam"} if folder == "Junk" else {subject}
        assert site.subjects(client, site.as_client_says(folder)) == expected
    # Neither the pin nor a directory of ours is a folder for Dovecot.
    parents = {"Entw&APw-rfe"}
    assert site.listed_by(client) == {"INBOX", *parents, *map(site.as_client_says, FOLDERS)}
    assert any(b"-canary" in p.read_bytes() for p in site.atrest.caches.rglob("*.cache"))
    client.logout()
    assert {path.read_bytes()[:10] for path in all_mail(site.home)} == {MAGIC}
    assert (site.home / "Maildir/lmtp-atrest.pin").exists()
    assert site.in_clear() == []
    folders = {subject: folder for folder, subject in FOLDERS.items()} | {"spam": "Junk"}
    assert site.listed(ALICE, PASSWORD) == folders | {"inbox": "INBOX", "nowhere": "INBOX"}


def all_mail(home: Path) -> list[Path]:
    return [path for sub in ("new", "cur") for path in home.rglob(f"{sub}/*")]


class Scattered(Dovecot):
    """Mail lies where the user database says: of alice by `home`, of the others by `mail`."""

    def maildir(self, name: str) -> Path:
        local = name.partition("@")[0]
        if name == ALICE:
            return self.mail / "a/deep/er" / local / "Maildir"
        return self.mail / "elsewhere" / local

    def write_users(self) -> None:
        rows = []
        for name, secret in self.users.items():
            path = self.maildir(name)
            said = f"userdb_mail_path={path} userdb_mail_inbox_path={path}"
            if self.version == "2.3":
                said = f"userdb_mail=maildir:{path}"
            home, said = (path.parent, "") if name == ALICE else ("", said)
            rows.append(f"{name}:{{PLAIN}}{secret}::::{home}::{said}\n")
        self.host.write("/etc/dovecot/users", "".join(rows))


def test_mail_lies_where_the_user_database_says(host: Host, shared: Path) -> None:
    dora = "dora@example.org"
    dovecot = Scattered(host, shared, USERS | {dora: "dora's"})
    # On 2.3 a `mail` of the site's userdb wins over the one that moves the index cache to RAM.
    cache = "none" if dovecot.version == "2.3" else "ram"
    with deployed(dovecot, shared, LAYOUTS["maildir++"]):
        atrest = AtRest(shared, dovecot, cache=cache)
        for name in (ALICE, CAROL):
            atrest.add(name, USERS[name], maildir=dovecot.maildir(name))
        with atrest:
            site = Site(shared, dovecot, atrest, LAYOUTS["maildir++"])
            site.deliver("first", ALICE, BOB, CAROL)
            added = [
                call("account", "add", "-c", atrest.config_path, *arguments, "--json")
                for arguments in ((BOB,), (dora, "--maildir", dovecot.maildir(dora)))
            ]
            for name, done in zip((BOB, dora), added, strict=True):
                assert json.loads(done.stdout)["maildir"] == str(dovecot.maildir(name))
            site.deliver("second", BOB, dora)
            shown = {}
            for name, password in dovecot.users.items():
                client = dovecot.login(name, password)
                shown[name] = site.subjects(client, "INBOX")
                client.logout()
            assert shown == {
                ALICE: {"first"}, BOB: {"first", "second"}, CAROL: {"first"}, dora: {"second"},
            }  # fmt: skip
            assert {path.split("/")[2] for path in site.in_clear()} == {"bob", "dora"}
            assert site.listed(CAROL, USERS[CAROL]) == {"first": "INBOX"}
