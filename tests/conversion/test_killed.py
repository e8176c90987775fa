"""Kill -9 at every call of a conversion that changes something on the disk, then go on."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lmtp_atrest.conversion import Direction, Place, States, convert
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.maildir import Layout
from tests.conversion.mailboxes import NEW, OLD, forms, job, seen
from tests.killing import run_until

NEVER = 10**9
MESSAGES = {"cur/1.M1P1.host,S=13,W=15:2,S": b"Subject: a\n\nb", "new/2.M1P1.host,S=1,W=1": b"x"}
# By way: the exchange, or the lock of Dovecot's list of UIDs.
STEPS: dict[str, list[tuple[Direction, PrivateKey, str]]] = {
    "exchange": [(Direction.ENCRYPT, OLD, "old"), (Direction.DECRYPT, OLD, "plain")],
    "lock": [(Direction.ENCRYPT, OLD, "old"), (Direction.REWRAP, NEW, "new")],
}


def mailbox(root: Path) -> Path:
    maildir = root / "alice"
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True)
    for name, content in MESSAGES.items():
        (maildir / name).write_bytes(content)
    states = States(f"sqlite:///{root}/conversion.db")
    states.open()
    states.close()
    return maildir


def converted(root: Path, direction: Direction, key: PrivateKey, *, exchange: bool) -> None:
    """What the service does for an account, with the book that it keeps."""
    states = States(f"sqlite:///{root}/conversion.db")
    path = root / "alice"
    place = Place("1", root, path, path, Layout())
    counts, clean = convert(place, job(direction, key), states, exchange=exchange)
    assert (clean, counts.failed) == (True, 0), counts
    states.close()


def kill_everywhere(root: Path, way: str) -> int:
    """Each step from its beginning, killed at each call and taken up again; how many kills."""
    start, here, kills = root / "start", root / "here", 0
    before = seen(mailbox(start))
    for direction, key, expected in STEPS[way]:

        def work(direction: Direction = direction, key: PrivateKey = key) -> None:
            converted(here, direction, key, exchange=way == "exchange")

        number, came_to = -1, -1
        while came_to == number:
            number += 1
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(start, here)
            came_to = run_until(work, number)
            assert seen(here / "alice") == before, (direction, number)
            run_until(work, NEVER)
            assert seen(here / "alice") == before, (direction, number)
            assert forms(here / "alice") == {expected}
        kills += number
        shutil.rmtree(start)
        here.rename(start)
    return kills


@pytest.mark.parametrize("way", STEPS)
def test_a_run_that_is_killed_at_any_call_goes_on_and_loses_nothing(way: str) -> None:
    # In a process of its own: one that has threads, as this may, must not fork.
    command = [sys.executable, "-m", "tests.conversion.test_killed", way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


if __name__ == "__main__":
    # In memory: a killed process leaves the same there, and faster.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        print(kill_everywhere(Path(made), sys.argv[1]))
