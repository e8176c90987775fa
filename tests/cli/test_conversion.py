"""An account is switched on and off again, with the mail that was there, on running services."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.conversion import Counts, States
from tests.cli.conftest import PASSWORD, RunningSite
from tests.cli.test_key_life import ok, shown
from tests.messages import eight_bit, multipart, short_text

ERIN = "erin@example.org"
NEW = "a fresh and rather long phrase"
MESSAGES = [short_text(), eight_bit(), multipart()]


def bodies(maildir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in maildir.rglob("*,S=*") if p.parent.name != "tmp"}


def sealed(maildir: Path) -> set[bool]:
    return {content.startswith(b"CRYPTED") for content in bodies(maildir).values()}


@pytest.fixture(scope="module")
def erin(running: RunningSite) -> Path:
    """Mail from before, in INBOX and in a folder."""
    ok(running.run("account", "add", ERIN))
    maildir = Path(str(shown(running, ERIN)["maildir"]))
    for message in MESSAGES * 5:
        running.deliver([ERIN], message)
    for name in ("tmp", "new", "cur"):
        (maildir / ".Sent" / name).mkdir(parents=True)
    for number, path in enumerate(sorted((maildir / "new").iterdir())):
        if number % 2:
            path.rename(maildir / ".Sent" / "cur" / f"{path.name}:2,S")
    return maildir


def convert(site: RunningSite, *options: str, **secrets: Any) -> dict[str, Any]:
    result = site.run("conversion", "run", ERIN, "--json", *options, **secrets)
    (found,) = json.loads(ok(result))
    assert isinstance(found, dict)
    return found


def switched_on_and_off_again_mail_is_what_it_was(running: RunningSite, erin: Path) -> None:
    before = bodies(erin)
    assert running.run("conversion", "run", ERIN).returncode == 10  # not encrypted yet
    ok(running.run("account", "enable", ERIN, secret=PASSWORD))
    assert sealed(erin) == {False}
    counted = convert(running, "--dry-run")
    assert (counted["messages"], counted["to_change"]) == (len(before), len(before))
    assert counted["bytes"] == sum(map(len, before.values()))
    assert counted["estimated_seconds"] is None
    encrypted = convert(running)
    assert (encrypted["done"], encrypted["clean"]) == (len(before), True)
    assert sealed(erin) == {True}
    assert convert(running, "--dry-run")["to_change"] == 0
    assert convert(running, "--dry-run", "--to", "rewrap")["to_change"] == 0
    proved = json.loads(ok(running.run("mail", "verify", ERIN, "--json", secret=PASSWORD)))
    assert (proved["sealed"], proved["plain"], proved["well"]) == (len(before), 0, True)
    assert "encrypted, 0 plain" in ok(running.run("mail", "verify", ERIN, "--headers-only"))
    # Another key for all of it, twice: the payload kept, and wholly new.
    for direction in ("rewrap", "reseal"):
        ok(running.run("account", "rotate", ERIN, "--compromised", secret=PASSWORD))
        moved = convert(running, "--to", direction, password=PASSWORD)
        assert (moved["done"], moved["clean"]) == (len(before), True)
    early = running.run("conversion", "run", ERIN, "--to", "decrypt", secret=PASSWORD)
    assert (early.returncode, "account disable" in early.stderr) == (10, True)
    ok(running.run("account", "disable", ERIN, secret=PASSWORD))
    back = convert(running, "--to", "decrypt", password=PASSWORD)
    assert (back["done"], back["clean"]) == (len(before), True)
    assert bodies(erin) == before
    assert shown(running, ERIN)["state"] == "plain"
    status = ok(running.run("conversion", "status"))
    assert "decrypt" in status
    assert "done" in status


def a_plain_account_is_encrypted_again_and_keeps_its_old_vault(
    running: RunningSite, erin: Path
) -> None:
    ok(running.run("account", "enable", ERIN, secret=NEW))
    assert convert(running)["clean"]
    assert shown(running, ERIN)["closed_vaults"] == 1
    ok(running.run("account", "join", ERIN, secret=PASSWORD, new_password=NEW))
    assert shown(running, ERIN)["closed_vaults"] == 0
    assert json.loads(ok(running.run("mail", "verify", ERIN, "--json", secret=NEW)))["well"]


def the_time_of_a_run_is_estimated_by_the_last_one(running: RunningSite, erin: Path) -> None:
    account = str(shown(running, ERIN)["account"])
    states = States(f"sqlite:///{running.root}/store/conversion.db")
    states.begin(account, "decrypt", 1_000)
    states.note(account, Counts(done=600), 4_000, "done")
    states.close()
    counted = convert(running, "--dry-run", "--to", "decrypt")
    assert counted["messages_per_second"] == 200.0
    assert counted["estimated_seconds"] == round(counted["to_change"] / 200)
    said = ok(running.run("conversion", "run", ERIN, "--dry-run", "--to", "decrypt"))
    assert "15 of 15 messages to change" in said
    assert "at the 200.0/s of the last such run" in said


def only_one_run_works_on_an_account_and_pauses_when_told(
    running: RunningSite, erin: Path
) -> None:
    account = str(shown(running, ERIN)["account"])
    assert running.run("conversion", "pause", ERIN).returncode == 10
    states = States(f"sqlite:///{running.root}/store/conversion.db")
    with states.exclusive(account):
        assert running.run("conversion", "run", ERIN).returncode == 9
        states.begin(account, "encrypt", 1)
        ok(running.run("conversion", "pause", ERIN))
    ok(running.run("conversion", "resume", ERIN))
    assert running.run("conversion", "resume", ERIN).returncode == 10
    states.close()
    assert convert(running)["clean"]


def test_an_account_is_converted_on_and_off_and_on_again(running: RunningSite, erin: Path) -> None:
    """One test, for each step starts from what the ones before left."""
    for step in (
        switched_on_and_off_again_mail_is_what_it_was,
        a_plain_account_is_encrypted_again_and_keeps_its_old_vault,
        the_time_of_a_run_is_estimated_by_the_last_one,
        only_one_run_works_on_an_account_and_pauses_when_told,
    ):
        print(step.__name__)
        step(running, erin)


@pytest.mark.parametrize(
    "options", [("--all", ERIN), (), ("--all", "--to", "decrypt"), ("--to", "nothing", ERIN)]
)
def test_what_cannot_be_asked_is_refused(running: RunningSite, options: tuple[str, ...]) -> None:
    assert running.run("conversion", "run", *options).returncode == 2
