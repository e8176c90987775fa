import json
import mailbox
import re
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.calling import call
from tests.cli.conftest import PASSWORD, RunningSite
from tests.messages import eight_bit, multipart, no_final_newline, short_text

ALICE, BOB = "alice@example.org", "bob@example.org"
MESSAGES = [short_text(), eight_bit(), multipart(), no_final_newline()]


def as_stored(content: bytes) -> bytes:
    """The content with LF line ends and a final one, as delivery stores it below its own lines."""
    lines = content.replace(b"\r\n", b"\n")
    return lines if lines.endswith(b"\n") else lines + b"\n"


@pytest.fixture(scope="module")
def alice(running: RunningSite) -> RunningSite:
    """alice encrypted, bob plain, four messages to each."""
    for name in (ALICE, BOB):
        assert running.run("account", "add", name).returncode == 0
    enabled = running.run("account", "enable", ALICE, secret=PASSWORD)
    assert enabled.returncode == 0, enabled.stderr
    assert "encrypted" in enabled.stdout
    for message in MESSAGES:
        replies = running.deliver([ALICE, BOB], message)
        assert all(reply.startswith("250 2.0.0 ") for reply in replies), replies
    return running


def test_accounts_are_listed_and_shown(alice: RunningSite) -> None:
    listed = json.loads(alice.run("account", "list", "--json").stdout)
    assert [(a["names"][0], a["state"]) for a in listed] == [(ALICE, "encrypted"), (BOB, "plain")]
    table = alice.run("account", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "STATE", "EPOCH", "ALIASES"]
    shown = alice.run("account", "show", "ALICE@Example.ORG").stdout
    assert "names:          alice@example.org" in shown
    assert re.search(r"password +- +active", shown)


def test_her_mail_is_listed_and_shown_as_it_was_sent(alice: RunningSite) -> None:
    listed = json.loads(alice.run("mail", "list", ALICE, "--json", secret=PASSWORD).stdout)
    assert {m["subject"] for m in listed} >= {"Lunch on Thursday?", "Notes of the meeting"}
    assert all(m["sealed"] and m["folder"] == "INBOX" for m in listed)
    table = alice.run("mail", "list", ALICE, secret=PASSWORD).stdout
    assert len(table.splitlines()) == 1 + len(MESSAGES)
    number = next(m["number"] for m in listed if m["subject"] == "Lunch on Thursday?")
    shown = alice.run("mail", "show", ALICE, str(number), secret=PASSWORD).stdout
    assert "Shall we say one o'clock" in shown
    assert shown.startswith("Return-Path: <carol@example.net>\nDelivered-To: alice@example.org\n")
    missing = alice.run("mail", "show", ALICE, "99", secret=PASSWORD)
    assert (missing.returncode, missing.stdout) == (6, "")


def test_export_writes_what_was_sent_to_maildir_and_mbox(
    alice: RunningSite, tmp_path: Path
) -> None:
    copy, mbox = tmp_path / "copy", tmp_path / "copy.mbox"
    assert alice.run("mail", "export", ALICE, str(copy), secret=PASSWORD).returncode == 0
    bodies = [path.read_bytes() for path in (copy / "new").iterdir()]
    for message in MESSAGES:
        assert sum(body.endswith(as_stored(message)) for body in bodies) == 1
    assert {len(body) for body in bodies} == {
        int(path.name.partition(",S=")[2].partition(",")[0]) for path in (copy / "new").iterdir()
    }
    mode = ("--format", "mbox", "--json")
    exported = alice.run("mail", "export", ALICE, str(mbox), *mode, secret=PASSWORD)
    assert json.loads(exported.stdout) == {"exported": 4, "faults": []}
    assert mbox.stat().st_mode & 0o077 == 0
    with closing(mailbox.mbox(mbox)) as box:
        assert len(box) == 4
    again = alice.run("mail", "export", ALICE, str(mbox), secret=PASSWORD)
    assert again.returncode == 2
    assert "nothing is overwritten" in again.stderr


def test_a_message_that_does_not_open_is_told_and_the_others_are_read(
    alice: RunningSite, tmp_path: Path
) -> None:
    new = alice.root / "mail" / ALICE / "Maildir" / "new"
    victim = min(new.iterdir())
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        listed = alice.run("mail", "list", ALICE, secret=PASSWORD)
        assert "message 1 " in listed.stderr
        assert len(listed.stdout.splitlines()) == len(MESSAGES)  # a head line for the lost one
        exported = alice.run("mail", "export", ALICE, str(tmp_path / "c"), secret=PASSWORD)
        assert exported.returncode == 8
        assert victim.name in exported.stderr
    finally:
        victim.write_bytes(whole)


@pytest.mark.parametrize(
    ("arguments", "secret", "code", "complaint"),
    [
        (("mail", "list", BOB), PASSWORD, 10, "not encrypted"),
        (("mail", "list", "nobody@example.org"), PASSWORD, 6, "no account"),
        (("mail", "list", ALICE), "wrong", 7, "wrong secret|opens with this secret"),
        (("mail", "list", ALICE), "", 2, "holds no password"),
        (("mail", "list", ALICE), None, 2, "--password-fd"),
        (("account", "enable", ALICE), PASSWORD, 10, "encrypted already"),
        (("account", "enable", "nobody@example.org"), PASSWORD, 6, "no account"),
        (("account", "add", BOB), None, 9, "name of an account already"),
        (("account", "add", "../../etc"), None, 2, ""),
        (("account", "show", "nobody@example.org"), None, 6, "no account"),
        (("account", "remove", BOB, "--yes", ALICE), None, 2, "nothing was changed"),
        (("account", "alias", BOB, ALICE), None, 9, "already"),
    ],
)
def test_errors_have_their_exit_code_and_say_what_is_wrong(
    alice: RunningSite, arguments: tuple[str, ...], secret: str | None, code: int, complaint: str
) -> None:
    result = alice.run(*arguments, secret=secret)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert any(part in result.stderr for part in complaint.split("|"))


def test_a_session_is_listed_and_locked(alice: RunningSite) -> None:
    alice.run("mail", "list", ALICE, secret=PASSWORD)
    listed = json.loads(alice.run("session", "list", "--json").stdout)
    assert [s["name"] for s in listed] == [ALICE]
    assert ALICE in alice.run("session", "list").stdout
    locked = alice.run("session", "lock", ALICE)
    assert "1 vaults closed" in locked.stdout
    assert json.loads(alice.run("session", "list", "--json").stdout) == []


def test_names_change_and_mail_follows(alice: RunningSite) -> None:
    assert alice.run("account", "add", "dora@example.org").returncode == 0
    assert alice.run("account", "alias", "dora@example.org", "info@example.org").returncode == 0
    assert alice.deliver(["info@example.org"], short_text())[0].startswith("250")
    assert alice.run("account", "rename", "dora@example.org", "d@example.org").returncode == 0
    assert len(list((alice.root / "mail/dora@example.org/Maildir/new").iterdir())) == 1
    taken = alice.run("account", "alias", "d@example.org", "info@example.org", "--remove")
    assert taken.returncode == 0
    removed = alice.run("account", "remove", "d@example.org", "--yes", "d@example.org", "--json")
    assert json.loads(removed.stdout)["state"] == "removed"


def test_no_secret_and_no_content_stands_in_the_log(alice: RunningSite) -> None:
    log = (alice.root / "serve.log").read_bytes()
    assert b'"event": "delivery"' in log
    for canary in (PASSWORD.encode(), b"Lunch on Thursday", b"usual place"):
        assert canary not in log


def test_a_password_is_never_taken_from_the_arguments() -> None:
    text = call("account", "enable", "--help").stdout
    assert "--password-fd" in text
    assert "--password " not in text


def test_the_stores_and_keys_are_closed_to_others(alice: RunningSite) -> None:
    for name in ("store/vaults.db", "store/pins.db", "site/site.key"):
        assert (alice.root / name).stat().st_mode & 0o077 == 0, name
    assert (alice.root / "mail" / ALICE / "Maildir").stat().st_mode & 0o077 == 0
