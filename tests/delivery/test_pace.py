"""Who waits for the disk: the event loop, or threads; what is stored is the same."""

import threading

import pytest

from lmtp_atrest.delivery.pace import SLOW_SECONDS, SMALL, Pace
from lmtp_atrest.maildir.filesystem import Filesystem
from tests.delivery.sites import DeliverySite
from tests.sites import PASSWORD


@pytest.mark.parametrize(
    ("commits", "slow"),
    [
        ([], False),
        ([(0.0004, 4000)] * 100, False),
        ([(SLOW_SECONDS * 2, 4000)] * 20, True),
        ([(5.0, 4000)], True),
        ([(5.0, 4000)] + [(0.0004, 4000)] * 60, False),
        ([(5.0, SMALL + 1)], False),
    ],
)
def test_a_slow_disk_is_noticed_and_forgiven(commits: list[tuple[float, int]], slow: bool) -> None:
    pace = Pace()
    for seconds, size in commits:
        pace.note(seconds, size)
    assert pace.is_slow is slow


async def test_threads_wait_for_a_slow_disk_and_the_event_loop_for_a_fast_one(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: set[str] = set()
    fsync = Filesystem.fsync

    def watched(self: Filesystem, fd: int) -> None:
        waited.add(threading.current_thread().name)
        fsync(self, fd)

    monkeypatch.setattr(Filesystem, "fsync", watched)
    names = [f"{number}@example.org" for number in range(3)]
    for name in names:
        mail.site.add(name, PASSWORD)
    await mail.send(*names)  # the first time, Maildirs are swept, in a thread
    waited.clear()
    assert await mail.send(*names) == ["250 2.0.0 stored"] * 3
    assert waited == {"MainThread"}
    mail.delivery._storage.pace.note(60, 0)
    waited.clear()
    assert await mail.send(*names) == ["250 2.0.0 stored"] * 3
    assert waited
    assert "MainThread" not in waited
    assert len(mail.files()) == 9
