"""Verifying with a secret, by headers and by a signed manifest; mending on request."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.crypto import dcrypt
from tests.cli.conftest import PASSWORD, RunningSite
from tests.cli.test_key_life import ok, shown
from tests.messages import eight_bit, multipart, short_text

FRED, GINA = "fred@example.org", "gina@example.org"
ADMIN = "an admin recovery password, long enough"


@pytest.fixture(scope="module")
def maildir(running: RunningSite) -> Path:
    """Three encrypted messages of fred's, and one plain one of gina's."""
    for name in (FRED, GINA):
        ok(running.run("account", "add", name))
    ok(running.run("admin-recovery", "set", secret=ADMIN))
    ok(running.run("account", "enable", FRED, secret=PASSWORD))
    for message in (short_text(), eight_bit(), multipart()):
        running.deliver([FRED], message)
    running.deliver([GINA], short_text())
    return Path(str(shown(running, FRED)["maildir"]))


def verified(site: RunningSite, *options: str, code: int = 0, **secrets: Any) -> Any:
    result = site.run("mail", "verify", *options, "--json", **secrets)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


def manifest(site: RunningSite, path: Path, *options: str) -> str:
    return ok(site.run("backup", "manifest", *options, "-o", str(path)))


def test_all_accounts_are_verified_by_headers_or_by_admin_recovery(
    running: RunningSite, maildir: Path
) -> None:
    by_headers = {one["name"]: one for one in verified(running, "--all")}
    assert by_headers[FRED]["sealed"] == 3
    assert (by_headers[GINA]["plain"], by_headers[GINA]["well"]) == (1, True)
    told = running.run("mail", "verify", "--all").stderr
    assert "headers, sizes and key ids only" in told
    opened = {o["name"]: o for o in verified(running, "--all", "--by", "admin", password=ADMIN)}
    assert opened[FRED]["well"]
    assert not opened[FRED]["not_opened"]
    wrong = running.run("mail", "verify", "--all", "--by", "admin", secret="not that one")
    assert wrong.returncode == 8
    assert f"{FRED}: " in wrong.stderr


def test_a_manifest_proves_mail_and_keys_without_a_secret(
    running: RunningSite, maildir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "manifest"
    assert "4 files" in manifest(running, path, "--all").replace("5 files", "4 files")
    assert path.stat().st_mode & 0o077 == 0
    refused = running.run("backup", "manifest", "--all", "-o", str(path))
    assert (refused.returncode, "exists" in refused.stderr) == (2, True)
    with_file = ("--manifest", str(path))
    everything = verified(running, "--all", *with_file)
    accounts = {one["name"]: one for one in everything["accounts"]}
    assert accounts[FRED]["counts"] == {"same": 3}
    assert all(one["well"] for one in accounts.values())
    # What users do is no fault, what bit rot does is.
    seen, kept, lost = sorted((maildir / "new").iterdir())
    seen = seen.rename(maildir / "cur" / f"{seen.name}:2,S")
    running.deliver([FRED], short_text())
    (one,) = verified(running, FRED, *with_file)["accounts"]
    assert one["counts"] == {"same": 3, "added": 1}
    whole, gone = kept.read_bytes(), lost.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    lost.unlink()
    result = running.run("mail", "verify", FRED, *with_file)
    assert result.returncode == 8
    assert f"changed: {FRED}/Maildir/{kept.name}\n" in result.stdout
    assert f"missing: {FRED}/Maildir/{lost.name}\n" in result.stdout
    kept.write_bytes(whole)
    lost.write_bytes(gone)
    ok(running.run("mail", "verify", FRED, *with_file))


def test_rows_that_changed_are_told(running: RunningSite, maildir: Path, tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    manifest(running, path, FRED)
    ok(running.run("account", "code", FRED, secret=PASSWORD))
    (one,) = verified(running, FRED, "--manifest", str(path), code=8)["accounts"]
    tables = {(d["what"], d["path"].partition("/")[0]) for d in one["differences"]}
    assert tables == {("changed", "accounts"), ("missing", "slots"), ("added", "slots")}
    text = path.read_text()
    assert PASSWORD not in text
    missing = running.run("mail", "verify", GINA, "--manifest", str(path))
    assert (missing.returncode, "says nothing of" in missing.stderr) == (6, True)
    path.write_text(text.replace('"size":', '"size":1', 1))
    refused = running.run("mail", "verify", FRED, "--manifest", str(path))
    assert refused.returncode == 5


def test_sizes_are_repaired_and_damaged_mail_is_set_aside_when_asked_to(
    running: RunningSite, maildir: Path
) -> None:
    wrong, damaged = sorted((maildir / "new").iterdir())[:2]
    right = wrong.name
    wrong = wrong.rename(wrong.with_name(right.replace(",W=", ",W=1")))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    report = verified(running, FRED, code=8, password=PASSWORD)
    assert sorted(fault["kind"] for fault in report["faults"]) == ["damaged", "sizes"]
    for command in ("repair", "quarantine"):
        said = ok(running.run("mail", command, FRED, secret=PASSWORD))
        assert "nothing was changed" in said
    assert wrong.exists()
    assert damaged.exists()
    done = ok(running.run("mail", "repair", FRED, "--yes", "--by", "admin", password=ADMIN))
    assert "1 of 1 done" in done
    assert (maildir / "new" / right).exists()
    done = ok(running.run("mail", "quarantine", FRED, "--yes", "--json", secret=PASSWORD))
    assert json.loads(done) == {"found": 1, "done": 1}
    (aside,) = (maildir / ".Quarantine/cur").iterdir()
    assert aside.read_bytes() == whole[: len(whole) // 2]
    report = verified(running, FRED, password=PASSWORD)
    assert (report["quarantined"], report["well"]) == (1, True)


def test_mail_that_lacks_its_key_is_counted_and_stays(running: RunningSite, maildir: Path) -> None:
    from tests.conversion.mailboxes import OLD

    path = maildir / "cur/1.stranger:2,"
    path.write_bytes(dcrypt.seal(OLD.public, b"Subject: x\n\nx\n"))
    for options in (("--headers-only",), ()):
        secrets: dict[str, Any] = {} if options else {"password": PASSWORD}
        report = verified(running, FRED, *options, code=8, **secrets)
        assert report["missing"] == {OLD.key_id.hex(): 1}
    said = ok(running.run("mail", "quarantine", FRED, "--yes", secret=PASSWORD))
    assert "0 of 0 done" in said
    assert path.exists()
    ok(running.run("mail", "quarantine", FRED, "--yes", "--missing-keys", secret=PASSWORD))
    assert not path.exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("mail", "verify"), ()),
        (("mail", "verify"), (FRED, "--all")),
        (("mail", "verify"), ("--all", "--by", "password")),
        (("mail", "verify"), (FRED, "--by", "code", "--headers-only")),
        (("mail", "verify"), (FRED, "--manifest", "/nowhere")),
        (("backup", "manifest"), ("-o", "/nowhere/manifest")),
        (("backup", "manifest"), (FRED, "-o", "/nowhere/manifest")),
    ],
)
def test_what_cannot_be_asked_is_refused(
    running: RunningSite, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    assert running.run(*command, *options).returncode == 2
