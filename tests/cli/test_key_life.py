"""A user's and an administrator's day with keys, from the command line on running services."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.secret import Secret
from tests.cli.calling import Result, call
from tests.cli.conftest import PASSWORD, RunningSite
from tests.messages import short_text
from tests.peers.root import attempts

CAROL, DAVE = "carol@example.org", "dave@example.org"
NEW, NEWER = "a fresh and rather long phrase", "another phrase, longer than that"
ROOT, ROOT2 = "the site's own escape hatch", "a second hatch, opened later"
ERRORS: list[tuple[tuple[str, ...], dict[str, Any], int, str]] = [
    (("password", CAROL), {"password": NEW, "new_password": NEWER}, 10, "account join"),
    (("password-abort", CAROL), {}, 10, "no password change"),
    (("code", DAVE), {"password": NEWER}, 7, "no slot"),
    (("code", "nobody@example.org"), {"password": NEW}, 6, "no account"),
    (("thaw", CAROL), {"password": NEW}, 12, "typo"),
    (("freeze", CAROL, "--all"), {}, 2, "an address, or --all"),
]


def ok(result: Result) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def readable(site: RunningSite, name: str, password: str) -> int:
    """How many messages `mail list` opens with this password."""
    listed = site.run("mail", "list", name, "--json", secret=password)
    return sum(bool(m["subject"]) for m in json.loads(ok(listed)))


def code_in(text: str) -> str:
    """The recovery code that a command has shown."""
    words = (word for word in text.split() if recovery_code.looks_like(word))
    return next(words)


def shown(site: RunningSite, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(ok(site.run("account", "show", name, "--json")))
    return found


def a_user_loses_the_password_and_comes_back(running: RunningSite, tmp_path: Path) -> None:
    ok(running.run("account", "add", CAROL))
    page = tmp_path / "code.html"
    enabled = ok(running.run("account", "enable", CAROL, "--page", str(page), secret=PASSWORD))
    code = code_in(enabled)
    assert (page.stat().st_mode & 0o777, code in page.read_text()) == (0o600, True)
    running.deliver([CAROL], short_text())
    typo = code[:-1] + ("2" if code[-1] != "2" else "3")
    refused = running.run("account", "recover", CAROL, code=typo, new_password=NEW)
    assert (refused.returncode, "typo" in refused.stderr) == (12, True)
    assert code not in refused.stderr
    weak = running.run("account", "recover", CAROL, code=code, new_password="12345")
    assert weak.returncode == 2
    recovered = ok(running.run("account", "recover", CAROL, code=code, new_password=NEW))
    assert readable(running, CAROL, NEW) == 1
    spent = running.run("account", "recover", CAROL, code=code, new_password=NEWER)
    assert spent.returncode == 7
    # The next code, made anew, is the one that counts.
    assert code_in(recovered) != code
    second = code_in(ok(running.run("account", "code", CAROL, secret=NEW)))
    ok(running.run("account", "join", CAROL, "--by", "code", secret=second, new_password=NEWER))
    assert readable(running, CAROL, NEWER) == 1
    assert running.run("mail", "list", CAROL, secret=NEW).returncode == 7


def a_reset_keeps_what_it_closes(running: RunningSite, _tmp_path: Path) -> None:
    mismatch = running.run("account", "reset", CAROL, "--yes", DAVE, new_password=NEW)
    assert (mismatch.returncode, "nothing was changed" in mismatch.stderr) == (2, True)
    ok(running.run("account", "reset", CAROL, "--yes", CAROL, new_password=NEW))
    running.deliver([CAROL], short_text())
    faults = running.run("mail", "list", CAROL, "--json", secret=NEW)
    assert sum(bool(m["subject"]) for m in json.loads(faults.stdout)) == 1
    ok(running.run("account", "join", CAROL, secret=NEWER, new_password=NEW))
    assert readable(running, CAROL, NEW) == 2
    ok(running.run("account", "rotate", CAROL, "--compromised", secret=NEW))
    running.deliver([CAROL], short_text())
    assert readable(running, CAROL, NEW) == 3
    assert len(shown(running, CAROL)["key_ids"]) == 3  # type: ignore[arg-type]


def app_passwords_are_shown_once_and_listed(running: RunningSite, _tmp_path: Path) -> None:
    add = ("account", "app-password", "add", CAROL, "phone")
    made = ok(running.run(*add, words=3, secret=NEW))
    assert re.search(r"^    ap-[0-9a-z]{4}(-[0-9a-z]{4}){7}$", made, re.MULTILINE)
    table = ok(running.run("account", "app-password", "list", CAROL, words=3)).splitlines()
    handle = table[1].split()[0]
    assert (table[0].split()[0], "phone" in table[1], "never" in table[1]) == (
        "HANDLE",
        True,
        True,
    )
    ok(running.run("account", "app-password", "remove", CAROL, handle, words=3))
    assert shown(running, CAROL)["rekey_due"]
    gone = running.run("account", "app-password", "remove", CAROL, handle, words=3)
    assert gone.returncode == 6


def frozen_means_frozen(running: RunningSite, _tmp_path: Path) -> None:
    assert running.run("account", "freeze").returncode == 2
    ok(running.run("account", "freeze", CAROL))
    running.deliver([CAROL], short_text())
    assert running.run("mail", "list", CAROL, secret=NEW).returncode == 10
    ok(running.run("account", "thaw", CAROL, "--by", "password", secret=NEW))
    assert readable(running, CAROL, NEW) == 4
    assert "1 accounts frozen" in ok(running.run("account", "freeze", "--all"))
    ok(running.run("account", "thaw", CAROL, "--by", "password", secret=NEW))


def an_administrator_gets_in_and_it_is_written_down(running: RunningSite, tmp_path: Path) -> None:
    told = running.run("admin-recovery", "set", secret=ROOT)
    assert (told.returncode, "read the mail of every account" in told.stderr) == (0, True)
    ok(running.run("account", "add", DAVE))
    ok(running.run("account", "enable", DAVE, secret=PASSWORD))
    running.deliver([DAVE], short_text())
    no_slot = ("admin-recovery", "reset-password", CAROL)
    assert running.run(*no_slot, secret=ROOT, new_password=NEW).returncode == 10
    ok(running.run("admin-recovery", "change", "--new-key", secret=ROOT, new_password=ROOT2))
    yes = ("admin-recovery", "reset-password", DAVE)
    assert running.run(*yes, secret=ROOT, new_password=NEW).returncode == 7
    ok(running.run(*yes, secret=ROOT2, new_password=NEW))
    assert readable(running, DAVE, NEW) == 1
    keys = tmp_path / "keys.pem"
    decrypt = ("admin-recovery", "decrypt", DAVE)
    assert running.run(*decrypt, secret=ROOT).returncode == 7
    export = (*decrypt, "--export-key", str(keys))
    ok(running.run(*export, secret=ROOT2, passphrase=NEWER))
    assert keys.stat().st_mode & 0o077 == 0
    first = keys.read_bytes().split(b"-----END")[0] + b"-----END ENCRYPTED PRIVATE KEY-----\n"
    key_ids = shown(running, DAVE)["key_ids"]
    assert isinstance(key_ids, list)
    assert PrivateKey.from_pem(first, Secret(NEWER.encode())).key_id.hex() == key_ids[0]
    assert running.run(*export, secret=ROOT2, passphrase=NEWER).returncode == 2
    status = ok(running.run("admin-recovery", "status"))
    assert re.search(r"it opens: +1\n", status)
    ok(running.run("account", "admin-recovery", DAVE, "--refuse", secret=NEW))
    assert shown(running, DAVE)["admin_recovery"] == "refused"
    lines = ok(running.run("admin-recovery", "audit")).splitlines()[1:]
    assert [re.split(r"  +", line)[2] for line in lines] == [
        "admin-set",
        "admin-key-changed",
        "admin-reset-password",
        "admin-export",
    ]


def an_administrator_decrypts_an_account_for_good(running: RunningSite, _tmp_path: Path) -> None:
    frank = "frank@example.org"
    ok(running.run("account", "add", frank))
    ok(running.run("account", "enable", frank, secret=PASSWORD))
    running.deliver([frank], short_text())
    ok(running.run("admin-recovery", "decrypt", frank, secret=ROOT2))
    assert shown(running, frank)["state"] == "plain"
    maildir = Path(str(shown(running, frank)["maildir"]))
    (message,) = (maildir / "new").iterdir()
    assert b"one o'clock" in message.read_bytes()
    audit = ok(running.run("admin-recovery", "audit"))
    assert audit.count("admin-leave") == audit.count("admin-decrypt") == 1


def leaving_and_returning(running: RunningSite, _tmp_path: Path) -> None:
    assert "leaving" in ok(running.run("account", "disable", DAVE, secret=NEW))
    # Delivery keeps the answer "encrypted" for two seconds, which harms nobody.
    listed = []
    for _ in attempts("a message stored plain", 10):
        running.deliver([DAVE], short_text())
        listed = json.loads(ok(running.run("mail", "list", DAVE, "--json", secret=NEW)))
        if not all(m["sealed"] for m in listed):
            break
    assert all(m["subject"] for m in listed)
    assert "encrypted" in ok(running.run("account", "disable", DAVE, "--undo", secret=NEW))


def a_panel_hands_on_old_and_new_password(running: RunningSite, tmp_path: Path) -> None:
    """The script that PostfixAdmin calls, with this site in place of sudo's."""
    script = (Path(__file__).parents[2] / "deploy/postfixadmin/lmtp-atrest-password").read_text()
    ours = f"{sys.executable} -m lmtp_atrest account join -c {running.config}"
    shipped = "sudo -n /usr/local/bin/lmtp-atrest account join"
    assert shipped in script
    installed = tmp_path / "lmtp-atrest-password"
    installed.write_text(script.replace(shipped, ours))
    installed.chmod(0o755)

    def hand_on(address: str, content: bytes) -> int:
        command = [str(installed), address, "example.org"]
        return subprocess.run(command, input=content, check=False, capture_output=True).returncode

    both = f"{NEW}\0{NEWER}\0".encode()
    assert hand_on(CAROL, both) == 0
    assert readable(running, CAROL, NEWER) == 4
    assert hand_on(CAROL, both) == 7
    assert hand_on("nobody@example.org", both) == 0
    for broken in (b"", b"only one\0", both + b"x", both.replace(b"\0", b"\n")):
        assert hand_on(CAROL, broken) == 2
    ok(running.run("account", "join", CAROL, secret=NEWER, new_password=NEW))


def errors_say_what_to_do(running: RunningSite, _tmp_path: Path) -> None:
    for arguments, secrets, code, says in ERRORS:
        result = call("account", arguments[0], "-c", running.config, *arguments[1:], **secrets)
        assert (result.returncode, says in result.stderr) == (code, True), result.stderr


DAY: list[Callable[[RunningSite, Path], None]] = [
    a_user_loses_the_password_and_comes_back,
    a_reset_keeps_what_it_closes,
    app_passwords_are_shown_once_and_listed,
    frozen_means_frozen,
    an_administrator_gets_in_and_it_is_written_down,
    an_administrator_decrypts_an_account_for_good,
    leaving_and_returning,
    a_panel_hands_on_old_and_new_password,
    errors_say_what_to_do,
]


def test_a_day_with_keys(running: RunningSite, tmp_path: Path) -> None:
    """One test, for each step starts from what the ones before left."""
    for step in DAY:
        print(step.__name__)
        step(running, tmp_path)
