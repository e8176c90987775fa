import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmtp_atrest.maildir import KeptMaildirs, Maildir, UnsafePath, kept


class Opened:
    """KeptMaildirs below `root`, and how often a Maildir was opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.times = 0
        self.kept = KeptMaildirs(self._open)

    def _open(self, path: Path, inbox: Path) -> Maildir:
        self.times += 1
        return Maildir.open(self.root, path, create=True, inbox=inbox)

    def deliver(self, name: str = "bob") -> None:
        """One message, which must lie where the path leads now."""
        path = self.root / name
        with self.kept.use(path, path) as maildir, maildir.create() as message:
            stored = message.commit(0, 0)
        assert (path / "new" / stored).is_file()


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_mailbox_in_use_stays_open(opened: Opened) -> None:
    for _ in range(3):
        opened.deliver()
    assert opened.times == 1


def moved_away(bob: Path) -> None:
    bob.rename(bob.with_name("old"))


def put_back_from_a_copy(bob: Path) -> None:
    shutil.copytree(bob, bob.with_name("copy"))
    shutil.rmtree(bob)
    bob.with_name("copy").rename(bob)


def new_made_anew(bob: Path) -> None:
    shutil.rmtree(bob / "new")
    (bob / "new").mkdir()


def cur_removed(bob: Path) -> None:
    (bob / "cur").rmdir()


@pytest.mark.parametrize("change", [moved_away, put_back_from_a_copy, new_made_anew, cur_removed])
def test_what_was_replaced_is_opened_anew(opened: Opened, change: Callable[[Path], None]) -> None:
    opened.deliver()
    change(opened.root / "bob")
    opened.deliver()
    assert opened.times == 2
    assert (opened.root / "bob/cur").is_dir()


def test_a_link_put_in_its_place_is_not_followed(opened: Opened) -> None:
    opened.deliver("bob")
    opened.deliver("eve")
    shutil.rmtree(opened.root / "bob")
    (opened.root / "bob").symlink_to(opened.root / "eve")
    with pytest.raises(UnsafePath):
        opened.deliver("bob")


def test_two_users_at_once_have_a_maildir_each(opened: Opened) -> None:
    path = opened.root / "bob"
    before = descriptors()
    with opened.kept.use(path, path) as first, opened.kept.use(path, path) as second:
        assert first is not second
    opened.deliver()
    assert opened.times == 2
    opened.kept.close()
    assert descriptors() == before


def test_after_a_failure_nothing_is_kept(opened: Opened) -> None:
    path = opened.root / "bob"
    before = descriptors()
    with pytest.raises(ZeroDivisionError), opened.kept.use(path, path):
        raise ZeroDivisionError
    assert descriptors() == before


def test_what_is_held_open_is_bounded(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEEP", 2)
    opened.deliver("0")
    one = descriptors()
    for name in "123":
        opened.deliver(name)
    assert descriptors() <= one + 5
    opened.kept.close()
