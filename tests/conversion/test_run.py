"""Conversion changes a message's form and nothing else, whatever happens meanwhile."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.conversion import Counts, Direction, Job, Run, verify
from lmtp_atrest.conversion import run as run_module
from lmtp_atrest.conversion.run import Pace
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from tests.conversion.mailboxes import NEW, OLD, fill, forms, job, leftovers, opened, seen, unwrap


def run(root: Path, maildir: Path, direction: str, key: PrivateKey = OLD, **more: Any) -> Counts:
    with opened(root, maildir) as box:
        return Run(box, job(direction, key), **more)()


def test_there_and_back_gives_the_same_bytes_names_flags_and_times(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    before = seen(maildir)
    steps = [
        ("encrypt", OLD, {"old"}),
        ("rewrap", NEW, {"new"}),
        ("reseal", OLD, {"old"}),
        ("decrypt", OLD, {"plain", "empty"}),
        ("rewrap", NEW, {"new"}),  # plain mail is encrypted on the way
        ("decrypt", OLD, {"plain", "empty"}),
    ]
    for direction, key, expected in steps:
        counts = run(tmp_path, maildir, direction, key)
        assert (counts.failed, counts.vanished) == (0, 0), counts.failures
        assert counts.done + counts.skipped == len(before)
        assert seen(maildir) == before
        assert forms(maildir) == expected
        assert leftovers(maildir) == []
        again = run(tmp_path, maildir, direction, key)
        assert (again.done, again.skipped) == (0, len(before))


def test_a_rewrap_keeps_the_ciphertext_and_a_reseal_does_not(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt")

    def tails() -> set[bytes]:
        return {p.read_bytes()[-16:] for p in maildir.rglob("*,S=*") if p.is_file()}

    first = tails()
    run(tmp_path, maildir, "rewrap", NEW)
    assert tails() == first
    run(tmp_path, maildir, "reseal", OLD)
    assert not tails() & first


def test_caches_in_clear_go_where_something_was_encrypted(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt")
    left = [p.parent.name for p in maildir.rglob("dovecot.index.cache")]
    assert left == [".empty"]


def test_a_message_that_does_not_open_stays_and_is_named(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt")
    damaged = next(maildir.glob("cur/*,S=17,*"))
    stat = damaged.stat()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    os.utime(damaged, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    whole = damaged.read_bytes()
    counts = run(tmp_path, maildir, "decrypt")
    assert [(f.folder, f.name) for f in counts.failures] == [("INBOX", damaged.name)]
    assert "tag" in counts.failures[0].reason
    assert damaged.read_bytes() == whole
    assert leftovers(maildir) == []
    # Set aside, it is nobody's failure any more: the account can leave.
    for name in ("tmp", "new", "cur"):
        (maildir / ".Quarantine" / name).mkdir(parents=True)
    damaged.rename(maildir / ".Quarantine/cur" / damaged.name)
    assert run(tmp_path, maildir, "decrypt").failed == 0


def test_links_and_what_is_no_file_are_left_alone(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    secret = tmp_path / "elsewhere"
    secret.write_bytes(b"not yours\n")
    (maildir / "cur" / "9.M1P1.host,S=10,W=11:2,").symlink_to(secret)
    os.mkfifo(maildir / "cur" / "8.M1P1.host,S=10,W=11:2,")
    counts = run(tmp_path, maildir, "encrypt")
    assert counts.failed == 2
    assert secret.read_bytes() == b"not yours\n"


def test_hard_links_are_converted_each_by_itself(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    first = next(p for p in (maildir / "cur").iterdir() if p.stat().st_size)
    copy = maildir / ".Sent" / "cur" / f"7{first.name}"
    os.link(first, copy)
    run(tmp_path, maildir, "encrypt")
    assert forms(maildir) == {"old"}
    assert first.stat().st_ino != copy.stat().st_ino


def test_a_run_stops_after_the_batch_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "BATCH", 4)
    maildir = fill(tmp_path)
    stopping = threading.Event()
    counts = run(
        tmp_path, maildir, "encrypt", stopping=stopping, progress=lambda _: stopping.set()
    )
    assert counts.done == 4
    assert run(tmp_path, maildir, "encrypt").done == len(seen(maildir)) - 4


@pytest.mark.parametrize(
    ("pace", "seconds"),
    [
        (Pace(), 0),
        (Pace(messages=50), 2),
        (Pace(bytes=1000), 3),
        (Pace(50, 1000), 3),
        (Pace(10), 10),
    ],
)
def test_a_run_goes_no_faster_than_it_may(pace: Pace, seconds: float) -> None:
    assert pace.seconds(100, 3000) == seconds


@pytest.mark.parametrize(
    ("direction", "missing"), [("encrypt", "public key"), ("decrypt", "open vault")]
)
def test_a_job_without_its_key_changes_nothing(
    tmp_path: Path, direction: str, missing: str
) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt" if direction == "decrypt" else "decrypt")
    before = forms(maildir)
    with opened(tmp_path, maildir) as box:
        counts = Run(box, Job(Direction(direction)))()
    assert counts.done == 0
    assert all(missing in failure.reason for failure in counts.failures)
    assert forms(maildir) == before


# ---- verify


def test_verify_proves_that_everything_opens_or_says_what_does_not(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt")
    with opened(tmp_path, maildir) as box:
        whole = verify(box, unwrap)
    assert (whole.well, whole.sealed, whole.plain) == (True, len(seen(maildir)), 0)
    renamed, cut = sorted(p for p in (maildir / "cur").iterdir())[:2]
    renamed.rename(renamed.with_name(renamed.name.replace(",S=", ",S=9")))
    cut.write_bytes(cut.read_bytes()[:-1])
    with opened(tmp_path, maildir) as box:
        report, headers = verify(box, unwrap), verify(box, None)
    assert sorted(fault.reason.partition("=")[0] for fault in report.faults) == [
        "S",
        "the tag does not fit: the body was cut, extended or changed",
    ]
    assert {fault.reason[0] for fault in headers.faults} == {"S"}  # what sizes alone can tell


def test_verify_names_keys_that_are_missing(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    run(tmp_path, maildir, "encrypt")
    count = len(seen(maildir))
    only_new = {NEW.key_id: NEW}

    def unwrap_new(header: dcrypt.Header) -> dcrypt.MessageKey:
        if header.key_id not in only_new:
            raise dcrypt.WrongKey
        return dcrypt.unwrap(header, only_new[header.key_id])

    with opened(tmp_path, maildir) as box:
        closed = verify(box, unwrap_new)
    assert closed.missing == {OLD.key_id.hex(): count}
