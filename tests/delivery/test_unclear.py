import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmtp_atrest.delivery.unclear import Entry, UnclearEnds
from tests.delivery.sites import MESSAGE, DeliverySite
from tests.sites import PASSWORD

STORED = ["250 2.0.0 stored"]
AGAIN = ["250 2.0.0 stored already"]

# A worker that notes a message, maybe stores it, and then lives until it is killed.
WORKER = """
import sys, time
from pathlib import Path
from lmtp_atrest.delivery.unclear import UnclearEnds
ends = UnclearEnds(Path(sys.argv[1]))
entry = ends.entry(ends.digest(b"a"))
if sys.argv[2] != "nothing":
    entry.note("1.a,S=1,W=2")
if sys.argv[2] == "stored":
    entry.stored()
print("up", flush=True)
time.sleep(60)
"""


def never(_name: str) -> bool:
    raise AssertionError


def no(_name: str) -> bool:
    return False


def left(ends: UnclearEnds, digest: str) -> Entry:
    entry = ends.entry(digest)
    entry.note("1.a")
    entry.stored()
    entry.leave()
    return entry


@contextmanager
def killed_worker(*arguments: object) -> Iterator[None]:
    """A process that has said it is up; killed by SIGKILL at the end."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = iter(worker.stdout.readline, "")
        assert "up\n" in lines
        try:
            yield
        finally:
            os.kill(worker.pid, signal.SIGKILL)


def entries(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("*/*")]


async def test_a_retry_after_an_unclear_end_is_stored_once(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    assert await mail.send("alice@example.org", end="unclear") == STORED
    mail.delivery.close()
    mail.delivery = mail.make(mail.site.records)  # another process, or the same after a crash
    assert await mail.send("alice@example.org", end="unclear") == AGAIN
    assert await mail.send("alice@example.org") == AGAIN
    assert len(mail.files()) == 1
    assert await mail.send("alice@example.org") == STORED
    assert len(mail.files()) == 2


async def test_a_large_retry_is_stored_once_and_leaves_nothing_in_tmp(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    large = MESSAGE * 3000
    assert await mail.send("alice@example.org", message=large, end="unclear") == STORED
    assert await mail.send("alice@example.org", message=large) == AGAIN
    assert len(mail.files()) == 1
    assert mail.files("tmp") == []


async def test_two_equal_messages_one_after_the_other_are_both_stored(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    assert await mail.send("alice@example.org") == STORED
    assert await mail.send("alice@example.org") == STORED
    assert len(mail.files()) == 2
    assert entries(mail.site.root / "unclear") == []


async def test_equal_messages_at_once_are_all_stored(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    sends = (mail.send("alice@example.org", end="open") for _ in range(8))
    assert await asyncio.gather(*sends) == [STORED] * 8
    assert len(mail.files()) == 8


async def test_while_its_connection_lives_a_message_answers_for_no_other(
    mail: DeliverySite,
) -> None:
    mail.site.add(password=PASSWORD)
    neighbour = mail.make(mail.site.records)  # a second worker
    assert await mail.send("alice@example.org", end="open") == STORED
    assert await mail.send("alice@example.org") == STORED
    mail.delivery, first = neighbour, mail.delivery
    assert await mail.send("alice@example.org") == STORED
    first.close()


async def test_other_content_sender_or_mailbox_is_another_message(mail: DeliverySite) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org", PASSWORD)
    assert await mail.send("alice@example.org", end="unclear") == STORED
    assert await mail.send("alice@example.org", message=MESSAGE + b"x\n") == STORED
    assert await mail.send("alice@example.org", sender="t") == STORED
    assert await mail.send("bob@example.org") == STORED


async def test_a_failed_delivery_is_not_remembered(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.site.add(password=PASSWORD)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(5, "EIO")))
    assert (await mail.send("alice@example.org", end="unclear"))[0].startswith("451")
    assert entries(mail.site.root / "unclear") == []
    monkeypatch.setattr(os, "fsync", fsync)
    assert await mail.send("alice@example.org", end="unclear") == STORED
    assert len(mail.files()) == 1


@pytest.mark.parametrize("where", ["renamed", "replied"])
async def test_a_worker_killed_before_its_reply_was_read_has_stored_it_once(
    mail: DeliverySite, where: str
) -> None:
    mail.site.add(password=PASSWORD)
    (mail.site.root / "site.pub").write_text(mail.site.public.text())
    with killed_worker("-m", "tests.delivery.killed", mail.site.root, "alice@example.org", where):
        assert await mail.send("alice@example.org") == STORED  # the worker lives: no retry
    assert await mail.send("alice@example.org") == AGAIN
    assert len(mail.files()) == 2
    assert await mail.send("alice@example.org") == STORED


@pytest.mark.parametrize("renamed", [True, False])
async def test_a_process_killed_around_the_rename(mail: DeliverySite, renamed: bool) -> None:
    mail.site.add(password=PASSWORD)
    await mail.send("alice@example.org", end="unclear")
    (stored,) = mail.files()
    (note,) = (mail.site.root / "unclear").glob("*/*")
    note.rename(note.with_name(note.name.replace("stored", "begun")))  # as before the rename
    if renamed:
        stored.rename(stored.parent.parent / "cur" / f"{stored.name}:2,S")  # read meanwhile
    else:
        stored.unlink()
    assert await mail.send("alice@example.org") == (AGAIN if renamed else STORED)
    assert len(mail.files("new") + mail.files("cur")) == 1


@pytest.mark.parametrize(
    ("state", "answers"), [("nothing", False), ("noted", True), ("stored", True)]
)
def test_a_process_killed_by_sigkill_leaves_what_it_stored(
    tmp_path: Path, state: str, answers: bool
) -> None:
    asked: list[str] = []

    def is_there(name: str) -> bool:
        asked.append(name)
        return True

    ends = UnclearEnds(tmp_path)
    digest = ends.digest(b"a")
    with killed_worker("-c", WORKER, tmp_path, state):
        assert ends.earlier(digest, never) is None  # it lives
    assert (ends.earlier(digest, is_there) is not None) == answers
    assert asked == (["1.a,S=1,W=2"] if state == "noted" else [])


def test_of_two_retries_one_is_answered(tmp_path: Path) -> None:
    first, second = UnclearEnds(tmp_path), UnclearEnds(tmp_path)
    digest = first.digest(b"a")
    assert digest == second.digest(b"a")
    left(first, digest)
    entry = second.earlier(digest, never)
    assert entry is not None
    assert first.earlier(digest, never) is None
    entry.leave()
    left(first, digest)
    assert [first.earlier(digest, never) is not None for _ in range(3)] == [True, True, False]


def test_trouble_with_the_mailbox_keeps_the_entry(tmp_path: Path) -> None:
    def trouble(_name: str) -> bool:
        raise OSError(errno.EIO, "EIO")

    ends = UnclearEnds(tmp_path)
    entry = ends.entry(ends.digest(b"a"))
    entry.note("1.a")
    entry.leave()
    with pytest.raises(OSError, match="EIO"):
        ends.earlier(ends.digest(b"a"), trouble)
    assert ends.earlier(ends.digest(b"a"), lambda name: name == "1.a") is not None


def test_the_digest_is_keyed_and_tells_parts_apart(tmp_path: Path) -> None:
    ends = UnclearEnds(tmp_path / "a")
    assert ends.digest(b"ab", b"c") != ends.digest(b"a", b"bc")
    assert ends.digest(b"a") != UnclearEnds(tmp_path / "b").digest(b"a")
    assert (tmp_path / "a" / "key").stat().st_mode & 0o777 == 0o600


def test_what_is_older_than_a_day_is_swept_but_key_and_living_processes(tmp_path: Path) -> None:
    ends, dead = UnclearEnds(tmp_path), UnclearEnds(tmp_path)
    os.close(dead._lock)
    old, young = ends.digest(b"old"), ends.digest(b"young")
    left(ends, old)
    (old_file,) = tmp_path.glob("*/*")
    left(ends, young)
    for path in (old_file, *tmp_path.glob("alive.*"), tmp_path / "key"):
        os.utime(path, (1, 1))
    assert ends.earlier(old, never) is None
    assert ends.earlier(young, never) is not None
    assert (tmp_path / "key").exists()
    assert [path.name for path in tmp_path.glob("alive.*")] == [f"alive.{ends._owner}"]


def test_an_orderly_end_leaves_no_lock_file(tmp_path: Path) -> None:
    UnclearEnds(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def no_locks(_fd: int, _operation: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def usable(ends: UnclearEnds) -> bool:
    left(ends, ends.digest(b"a"))
    entry = ends.earlier(ends.digest(b"a"), never)
    if entry is not None:
        entry.forget()
    return entry is not None


async def test_without_its_directory_or_locks_mail_is_delivered_all_the_same(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.site.add(password=PASSWORD)
    blocked = mail.site.root / "file"
    blocked.touch()
    assert usable(UnclearEnds(mail.site.root / "usable"))
    assert not usable(UnclearEnds(blocked / "sub"))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert not usable(UnclearEnds(mail.site.root / "unlocked"))
    mail.delivery = mail.make(mail.site.records)
    for _ in range(2):
        assert await mail.send("alice@example.org", end="unclear") == STORED


def test_where_a_neighbour_cannot_be_told_to_be_dead_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, neighbour = UnclearEnds(tmp_path), UnclearEnds(tmp_path)
    digest = ends.digest(b"a")
    neighbour.entry(digest).note("1.a")
    os.close(neighbour._lock)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        assert ends.earlier(digest, never) is None
    assert ends.earlier(digest, lambda _name: True) is not None


@pytest.mark.parametrize("step", [Entry.stored, Entry.leave, Entry.forget])
def test_an_entry_that_was_swept_troubles_nobody(
    tmp_path: Path, step: Callable[[Entry], None]
) -> None:
    ends = UnclearEnds(tmp_path)
    entry = ends.entry(ends.digest(b"a"))
    entry.note("1.a")
    for path in tmp_path.glob("*/*"):
        path.unlink()
    step(entry)
    assert entries(tmp_path) == []
    assert ends.earlier(ends.digest(b"a"), no) is None
