"""Conversion changes a message's form and nothing else, whatever happens meanwhile."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.conversion import Counts, Direction, Job, Run, verify
from lmtp_atrest.conversion import run as run_module
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.maildir import Maildir, StorageFailure
from lmtp_atrest.maildir.exchange import Exchange
from lmtp_atrest.maildir.filesystem import Filesystem
from tests.conversion.mailboxes import NEW, OLD, fill, forms, job, leftovers, opened, seen, unwrap
from tests.maildir.faulty import Crash, FaultyFilesystem


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


# ---- a client at work meanwhile


class Busy(Filesystem):
    """Before each exchange a client does something to the message in question."""

    def __init__(self, meddle: str) -> None:
        self.meddle = meddle
        self.times = 1

    def exchange(self, one: str, one_fd: int, other: str, other_fd: int) -> None:
        if self.times and ",S=" in other:
            self.times -= 1
            getattr(self, self.meddle)(other, other_fd)
        super().exchange(one, one_fd, other, other_fd)

    def flag(self, name: str, fd: int) -> None:
        os.rename(name, name.partition(":")[0] + ":2,F", src_dir_fd=fd, dst_dir_fd=fd)

    def remove(self, name: str, fd: int) -> None:
        os.unlink(name, dir_fd=fd)

    def replace(self, name: str, fd: int) -> None:
        os.unlink(name, dir_fd=fd)
        new = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
        os.write(new, b"Subject: another\n\nmessage\n")
        os.close(new)


@pytest.mark.parametrize(
    ("meddle", "vanished", "failed", "lost"),
    [("flag", 0, 0, 0), ("remove", 1, 0, 1), ("replace", 1, 0, 0)],
)
def test_what_a_client_does_at_the_last_moment_counts(
    tmp_path: Path, meddle: str, vanished: int, failed: int, lost: int
) -> None:
    maildir = fill(tmp_path)
    before = seen(maildir)
    with Maildir.open(tmp_path, maildir, create=False, fs=Busy(meddle)) as box:
        counts = Run(box, job("encrypt"))()
    assert (counts.vanished, counts.failed) == (vanished, failed), counts.failures
    after = seen(maildir)
    assert len(after) == len(before) - lost
    assert leftovers(maildir) == []
    if meddle == "flag":
        assert {s.content for s in after.values()} == {s.content for s in before.values()}
        assert forms(maildir) == {"old"}
    if meddle == "replace":
        assert b"another" in b"".join(s.content for s in after.values())
    assert run(tmp_path, maildir, "encrypt").failed == 0
    assert forms(maildir) == {"old"}


def test_a_message_in_another_ones_place_is_not_lost_when_the_disk_is_in_trouble(
    tmp_path: Path,
) -> None:
    """It came out by the exchange, and cannot go back: it goes in beside our copy."""
    maildir = fill(tmp_path)
    before = len(seen(maildir))

    class Trouble(Busy):
        done = 0

        def exchange(self, one: str, one_fd: int, other: str, other_fd: int) -> None:
            if ",S=" in other:
                self.done += 1
                if self.done == 2:
                    raise OSError(errno.EIO, "injected")
            super().exchange(one, one_fd, other, other_fd)

    with Maildir.open(tmp_path, maildir, create=False, fs=Trouble("replace")) as box:
        Run(box, job("encrypt"))()
    after = seen(maildir)
    assert len(after) == before + 1
    assert any(b"another" in message.content for message in after.values())


def test_a_message_that_is_listed_twice_is_converted_once(tmp_path: Path) -> None:
    """Between the listing of new/ and that of cur/ a client moved it."""
    maildir = fill(tmp_path)
    before = len(seen(maildir))
    name = next((maildir / "new").iterdir()).name

    os.link(maildir / "new" / name, maildir / "cur" / f"{name}:2,S")
    counts = run(tmp_path, maildir, "encrypt")
    (maildir / "new" / name).unlink()
    assert (counts.failed, counts.vanished, counts.done) == (0, 0, before)
    assert forms(maildir) == {"old"}


def test_a_message_that_goes_from_new_to_cur_is_followed(tmp_path: Path) -> None:
    maildir = fill(tmp_path)
    before = seen(maildir)
    with opened(tmp_path, maildir) as box:
        where = next(iter(box.subdirectories()))
        name = where.new.names()[0]
        exchange = Exchange(where, "new", name)
        job("encrypt").transform(exchange)
        exchange.prepare()
        (maildir / "new" / name).rename(maildir / "cur" / f"{name}:2,S")
        exchange.swap()
        exchange.settle()
        where.close()
    assert len(seen(maildir)) == len(before)
    assert (exchange.subdirectory, exchange.name) == ("cur", f"{name}:2,S")


# ---- faults


def calls_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(run_module, "THREADS", 1)
    fs = FaultyFilesystem()
    with Maildir.open(tmp_path, one_message(tmp_path), create=False, fs=fs) as box:
        first = len(fs.calls)
        Run(box, job("encrypt"))()
    assert not fs.renamed_unsynced
    return len(fs.calls) - first


def one_message(root: Path) -> Path:
    maildir = root / "one"
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    for path in maildir.rglob("*"):
        if path.is_file():
            path.unlink()
    message = maildir / "cur" / "1.M1P1.host,S=13,W=15:2,S"
    message.write_bytes(b"Subject: a\n\nb"[:13])
    os.utime(message, ns=(10**18, 10**18))
    return maildir


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "error", [Crash(), OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only")]
)
def test_a_fault_at_any_call_leaves_the_message_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: bool
) -> None:
    for number in range(calls_of_a_run(tmp_path, monkeypatch)):
        maildir = one_message(tmp_path)
        before = seen(maildir)
        fs = FaultyFilesystem()
        with (
            suppress(Crash, StorageFailure),
            Maildir.open(tmp_path, maildir, create=False, fs=fs) as box,
        ):
            fs.fail_at, fs.error, fs.after = len(fs.calls) + number, error, after
            Run(box, job("encrypt"))()
        assert seen(maildir) == before, number
        counts = run(tmp_path, maildir, "encrypt")
        assert (counts.failed, forms(maildir)) == (0, {"old"})


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


def test_a_file_system_without_exchange_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_names: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Filesystem, "exchange", never)
    maildir = fill(tmp_path)
    with pytest.raises(StorageFailure, match="cannot exchange"):
        run(tmp_path, maildir, "encrypt")
    assert leftovers(maildir) == []


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
