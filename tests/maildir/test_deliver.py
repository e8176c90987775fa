import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lmtp_atrest.maildir import (
    DiskFull,
    Maildir,
    NewMessage,
    OverQuota,
    StorageFailure,
    filesystem,
)
from tests.maildir.faulty import Crash, FaultyFilesystem

BODY = b"Return-Path: <a@example.org>\n\n" + b"x" * 2500


def deliver(root: Path, fs: FaultyFilesystem) -> str:
    """The whole way: Maildir made, message written, committed. Every call of it may fail."""
    with (
        Maildir.open(root, root / "example.org/bob/Maildir", create=True, fs=fs) as maildir,
        maildir.create("Nowhere") as message,
    ):
        message.write(BODY)
        return message.commit(len(BODY), len(BODY) + 2)


def files(root: Path, subdirectory: str) -> list[Path]:
    return [f for f in root.rglob(f"{subdirectory}/*") if f.is_file()]


def calls_of_a_delivery(tmp_path: Path) -> int:
    fs = FaultyFilesystem()
    (tmp_path / "whole").mkdir()
    deliver(tmp_path / "whole", fs)
    return len(fs.calls)


def test_delivery_is_durable_and_named_by_its_sizes(tmp_path: Path) -> None:
    fs = FaultyFilesystem()
    name = deliver(tmp_path, fs)
    (message,) = files(tmp_path, "new")
    assert message.read_bytes() == BODY
    assert message.name == name
    assert name.endswith(f",S={len(BODY)},W={len(BODY) + 2}")
    assert not files(tmp_path, "tmp")
    lost = {x for x in fs.unsynced if isinstance(x, int) or x[1] != name.partition(",")[0]}
    assert not lost, "a power cut now would lose something"
    assert not fs.renamed_unsynced


def test_files_are_0600_and_directories_0700(tmp_path: Path) -> None:
    deliver(tmp_path, FaultyFilesystem())
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failure_at_any_call_leaves_nothing(tmp_path: Path, number: int, after: bool) -> None:
    expected = {errno.ENOSPC: DiskFull, errno.EDQUOT: OverQuota}.get(number, StorageFailure)
    failed = 0
    for call in range(calls_of_a_delivery(tmp_path)):
        root = tmp_path / str(call)
        root.mkdir()
        fs = FaultyFilesystem(call, OSError(number, "injected"), after)
        try:
            deliver(root, fs)
        except StorageFailure as error:
            failed += 1
            assert type(error) is expected
            assert str(root) not in error.public
            assert not files(root, "new"), fs.calls[call]
            assert not files(root, "tmp"), fs.calls[call]
        else:  # closing a directory, a lock: nothing depends on them
            assert [f.read_bytes() for f in files(root, "new")] == [BODY]
            assert after or fs.calls[call] in ("close", "lock")
    assert failed >= (10 if after else 25)


def test_a_crash_at_any_call_never_leaves_half_a_message(tmp_path: Path) -> None:
    for call in range(calls_of_a_delivery(tmp_path)):
        root = tmp_path / str(call)
        root.mkdir()
        fs = FaultyFilesystem(call, Crash())
        committed = None
        with suppress(Crash):
            committed = deliver(root, fs)
        found = [f.read_bytes() for f in files(root, "new")]
        assert found in ([], [BODY])
        assert not fs.renamed_unsynced
        assert committed is None or found == [BODY]
        deliver(root, FaultyFilesystem())  # the next process goes on from whatever is there


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir.open(tmp_path, tmp_path / "bob", create=True)


class Changed(Exception):
    pass


def stop() -> None:
    raise Changed


@pytest.mark.parametrize("when", ["before_rename", "after_rename"])
def test_the_last_look_can_stop_a_delivery(maildir: Maildir, tmp_path: Path, when: str) -> None:
    message = maildir.create()
    message.write(BODY)
    looks: dict[str, Callable[[], None]] = {when: stop}
    with pytest.raises(Changed):
        message.commit(1, 1, **looks)
    assert not files(tmp_path, "new")
    assert not files(tmp_path, "tmp")


def test_the_looks_stand_right_before_and_right_after_the_rename(
    maildir: Maildir, tmp_path: Path
) -> None:
    message = maildir.create()
    seen: list[int] = []
    look = lambda: seen.append(len(files(tmp_path, "new")))  # noqa: E731
    message.commit(0, 0, before_rename=look, after_rename=look)
    assert seen == [0, 1]


def test_a_plain_message_that_was_stopped_does_not_come_back_after_a_power_cut(
    tmp_path: Path,
) -> None:
    fs = FaultyFilesystem()
    with Maildir.open(tmp_path, tmp_path / "bob", create=True, fs=fs) as maildir:
        message = maildir.create()
        with pytest.raises(Changed):
            message.commit(0, 0, after_rename=stop)
    assert fs.calls[fs.calls.index("rename") :][1:4] == ["unlink", "unlink", "fsync"]
    assert not files(tmp_path, "new")


def test_committing_or_writing_again_does_not_undo_the_message(
    maildir: Maildir, tmp_path: Path
) -> None:
    with maildir.create() as message:
        message.commit(0, 0)
        with pytest.raises(StorageFailure):
            message.commit(0, 0)
        with pytest.raises(StorageFailure):
            message.write(b"more")
    assert len(files(tmp_path, "new")) == 1


def test_withdraw_takes_a_message_back_once(maildir: Maildir, tmp_path: Path) -> None:
    with maildir.create() as message:
        assert not message.withdraw()
        message.commit(0, 0)
        assert message.withdraw()
        assert not files(tmp_path, "new")
        assert not message.withdraw()


def test_withdraw_says_when_the_message_is_read_already(maildir: Maildir, tmp_path: Path) -> None:
    with maildir.create() as message:
        name = message.commit(0, 0)
        (tmp_path / "bob/new" / name).rename(tmp_path / "bob/cur" / f"{name}:2,S")
        assert not message.withdraw()
    assert len(files(tmp_path, "cur")) == 1


def test_withdraw_that_may_not_last_is_a_failure(tmp_path: Path) -> None:
    fs = FaultyFilesystem()
    with Maildir.open(tmp_path, tmp_path / "bob", create=True, fs=fs) as maildir:
        message = maildir.create()
        message.commit(0, 0)
        fs.fail_at = len(fs.calls) + 1
        with pytest.raises(StorageFailure):
            message.withdraw()


def test_abort_and_close_leave_nothing_and_may_be_repeated(
    maildir: Maildir, tmp_path: Path
) -> None:
    for end in (NewMessage.abort, NewMessage.close):
        message = maildir.create()
        message.write(b"half")
        end(message)
        end(message)
        with pytest.raises(StorageFailure):
            message.write(b"more")
        with pytest.raises(StorageFailure):
            message.commit(0, 0)
    assert not files(tmp_path, "tmp")


def test_close_after_commit_keeps_the_message(maildir: Maildir, tmp_path: Path) -> None:
    with maildir.create() as message:
        message.write(b"")
        message.commit(0, 0)
    assert len(files(tmp_path, "new")) == 1


def test_descriptors_are_given_back(maildir: Maildir) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with maildir.create("Junk") as message:
            message.commit(0, 0)
        maildir.create().abort()
        with pytest.raises(Changed):
            maildir.create().commit(0, 0, before_rename=stop)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_existing_file_of_that_name_is_neither_used_nor_removed(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_atrest.maildir.deliver.unique_name", lambda host: "same")
    first = maildir.create()
    with pytest.raises(StorageFailure):
        maildir.create()
    assert [f.name for f in files(tmp_path, "tmp")] == ["same"]
    first.abort()


def test_a_link_planted_as_the_tmp_file_is_not_written_through(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_atrest.maildir.deliver.unique_name", lambda host: "same")
    victim = tmp_path / "victim"
    (tmp_path / "bob/tmp/same").symlink_to(victim)
    with pytest.raises(StorageFailure):
        maildir.create()
    assert not victim.exists()


def test_a_maildir_a_neighbour_made_just_now_is_synced_by_us_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "example.org/bob/Maildir"
    deliver(tmp_path, FaultyFilesystem())
    recent, old = FaultyFilesystem(), FaultyFilesystem()
    Maildir.open(tmp_path, path, create=True, fs=recent).close()
    later = time.time() + 2 * filesystem.RECENT_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    Maildir.open(tmp_path, path, create=True, fs=old).close()
    assert recent.calls.count("fsync") == 4
    assert old.calls.count("fsync") == 0


class LosesTheRace(FaultyFilesystem):
    def mkdir(self, name: str, dir_fd: int) -> None:
        os.mkdir(name, dir_fd=dir_fd)
        super().mkdir(name, dir_fd)


def test_two_processes_may_make_the_same_maildir(tmp_path: Path) -> None:
    deliver(tmp_path, LosesTheRace())
    assert len(files(tmp_path, "new")) == 1


def test_failing_sync_of_a_neighbours_directory_stops_us_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "example.org").mkdir()
    with pytest.raises(StorageFailure):
        deliver(tmp_path, FaultyFilesystem(2))
    assert list(tmp_path.iterdir()) == [tmp_path / "example.org"]


def test_directory_whose_sync_failed_is_not_left_for_a_later_delivery(tmp_path: Path) -> None:
    fs = FaultyFilesystem(4)  # open root, look, mkdir, open, fsync
    with pytest.raises(StorageFailure):
        deliver(tmp_path, fs)
    assert fs.calls[4] == "fsync"
    assert not list(tmp_path.iterdir())


FILL = """
import sys
from pathlib import Path
from lmtp_atrest.maildir import DiskFull, Maildir
root = Path(sys.argv[1])
with Maildir.open(root, root / "bob", create=True) as maildir:
    small = maildir.create()
    small.write(b"fits")
    big = maildir.create()
    try:
        for _ in range(1000):
            big.write(bytes(10_000))
    except DiskFull as error:
        print(error.public)
    small.commit(4, 4)
print(len(list(root.glob("bob/tmp/*"))), len(list(root.glob("bob/new/*"))))
"""


def test_a_full_disk_stops_one_message_and_spares_the_others(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=256k tmpfs $1 && exec $2 -c "$3" $1'
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root for a small tmpfs in a mount namespace of its own")
    command: list[str | Path] = [
        "unshare",
        "-m",
        "sh",
        "-c",
        mount,
        "sh",
        tmp_path,
        sys.executable,
        FILL,
    ]
    done = subprocess.run(
        [*command, sys.executable, FILL], capture_output=True, text=True, check=False
    )
    if "ermitted" in done.stderr:
        pytest.skip("no mount namespace here")
    assert done.stdout == "insufficient system storage\n0 1\n", done.stderr
