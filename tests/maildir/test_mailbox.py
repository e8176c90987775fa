import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir import (
    PIN_NAME,
    FolderStyle,
    Layout,
    Maildir,
    StorageFailure,
    UnsafePath,
    mailbox,
)
from lmtp_atrest.maildir.names import unique_name
from tests.maildir.faulty import FaultyFilesystem


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("bob", "bob/.Junk", "bob/.a.b", "bob/Junk", "bob/a/b", "bob/x.y"):
        for name in ("tmp", "new", "cur"):
            (tmp_path / folder / name).mkdir(parents=True)
    return tmp_path


def bob(root: Path, style: str = "maildir++") -> Maildir:
    layout = Layout(FolderStyle(style))
    return Maildir.open(root, root / "bob", create=False, layout=layout)


def delivered_to(root: Path, folder: str, style: str) -> str:
    with bob(root, style) as maildir, maildir.create(folder) as message:
        name = message.commit(0, 0)
    (found,) = (root / "bob").rglob(name)
    return str(found.parent.parent.relative_to(root / "bob"))


@pytest.mark.parametrize(
    ("style", "folder", "where"),
    [
        ("maildir++", "Junk", ".Junk"),
        ("maildir++", "a.b", ".a.b"),
        ("maildir++", "a", "."),
        ("maildir++", "a/b", ".a.b"),
        ("maildir++", "x.y", "."),
        ("maildir++", "inbox", "."),
        ("maildir++", "Nowhere", "."),
        ("maildir++", "../../etc", "."),
        ("fs", "Junk", "Junk"),
        ("fs", "a.b", "a/b"),
        ("fs", "a", "."),
        ("fs", "a/b", "a/b"),
        ("fs", "x.y", "x.y"),
        ("fs", "x/y", "."),
        ("fs", ".Junk", ".Junk"),
        ("fs", "cur", "."),
        ("fs", "\0", "."),
    ],
)
def test_detail_reaches_an_existing_folder_else_inbox(
    root: Path, style: str, folder: str, where: str
) -> None:
    assert delivered_to(root, folder, style) == where


def test_find_folder_tells_the_name_for_people(root: Path) -> None:
    with bob(root) as maildir:
        assert maildir.find_folder("a.b") == "a/b"
        assert maildir.find_folder("Inbox") == "INBOX"
        assert maildir.find_folder("Nowhere") is None
        assert maildir.find_folder("../x") is None


def test_directory_without_new_is_no_folder(root: Path) -> None:
    (root / "bob/.Junk/new").rmdir()
    assert delivered_to(root, "Junk", "maildir++") == "."


@pytest.mark.parametrize("link", [".Junk", ".Junk/new", ".Junk/tmp", ".Junk/cur"])
def test_linked_folder_is_no_folder(root: Path, link: str) -> None:
    path = root / "bob" / link
    path.rename(root / "elsewhere")
    path.symlink_to(root / "elsewhere")
    assert delivered_to(root, "Junk", "maildir++") == "."


@pytest.mark.parametrize("level", ["example.org", "example.org/bob", "example.org/bob/Maildir"])
@pytest.mark.parametrize("create", [True, False])
def test_link_at_any_level_below_the_root_is_refused(
    tmp_path: Path, level: str, create: bool
) -> None:
    path = tmp_path / "mail/example.org/bob/Maildir"
    path.mkdir(parents=True)
    linked = tmp_path / "mail" / level
    linked.rename(tmp_path / "away")
    linked.symlink_to(tmp_path / "away")
    with pytest.raises(UnsafePath) as caught:
        Maildir.open(tmp_path / "mail", path, create=create)
    assert "mail" not in caught.value.public


@pytest.mark.parametrize("name", ["tmp", "new"])
def test_linked_tmp_or_new_is_refused(root: Path, name: str) -> None:
    (root / "bob" / name).rmdir()
    (root / "bob" / name).symlink_to(root / "bob/.Junk" / name)
    with pytest.raises(UnsafePath):
        Maildir.open(root, root / "bob", create=True)
    with bob(root) as maildir, pytest.raises(UnsafePath):
        maildir.create()


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    Maildir.open(link, link / "bob", create=False).close()


@pytest.mark.parametrize("path", ["/etc", "/var/vmail2/bob", "/var/vmail/../bob", "bob"])
def test_path_outside_the_root_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath, match="below the mail root"):
        Maildir.open(Path("/var/vmail"), Path(path), create=True)


def test_missing_maildir_is_not_found_and_a_missing_root_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Maildir.open(tmp_path, tmp_path / "nobody", create=False)
    with pytest.raises(StorageFailure):
        Maildir.open(tmp_path / "disk", tmp_path / "disk/bob", create=True)
    assert not (tmp_path / "disk").exists()


def test_trouble_on_the_way_is_not_called_not_found(tmp_path: Path) -> None:
    with pytest.raises(StorageFailure):
        Maildir.open(tmp_path, tmp_path / "bob", create=False, fs=FaultyFilesystem(1))
    with bob_with_failing_look(tmp_path) as maildir, pytest.raises(StorageFailure):
        maildir.find_folder("Junk")


def bob_with_failing_look(root: Path) -> Maildir:
    fs = FaultyFilesystem(error=OSError(errno.EACCES, "injected"))
    maildir = Maildir.open(root, root / "bob", create=True, fs=fs)
    fs.fail_at = len(fs.calls)
    return maildir


def test_pin_is_replaced_whole_and_durably(root: Path) -> None:
    fs = FaultyFilesystem()
    with Maildir.open(root, root / "bob", create=True, fs=fs) as maildir:
        assert maildir.pin() is None
        maildir.write_pin(b"one")
        maildir.write_pin(b"two" * 1000)
        assert maildir.pin() == b"two" * 1000
    directory = (root / "bob").stat().st_ino
    assert (directory, PIN_NAME) not in fs.unsynced
    assert not fs.renamed_unsynced
    assert (root / "bob" / PIN_NAME).stat().st_mode & 0o777 == 0o600
    assert not list((root / "bob/tmp").iterdir())


def test_failure_at_any_call_leaves_a_whole_pin(root: Path) -> None:
    reached = 0
    for call in range(12):
        fs = FaultyFilesystem()
        with Maildir.open(root, root / "bob", create=True, fs=fs) as maildir:
            maildir.write_pin(b"old")
            fs.fail_at = len(fs.calls) + call
            try:
                maildir.write_pin(b"new")
            except StorageFailure:
                reached += 1
            fs.fail_at = -1
            assert maildir.pin() in (b"old", b"new")
        assert not list((root / "bob/tmp").iterdir())
    assert reached >= 6


def test_pin_that_is_none_is_refused(root: Path) -> None:
    pin = root / "bob" / PIN_NAME
    with bob(root) as maildir:
        pin.symlink_to("/etc/hostname")
        with pytest.raises(UnsafePath):
            maildir.pin()
        pin.unlink()
        os.mkfifo(pin)
        with pytest.raises(UnsafePath):
            maildir.pin()
        pin.unlink()
        pin.write_bytes(bytes(mailbox.PIN_LIMIT + 1))
        with pytest.raises(StorageFailure, match="larger"):
            maildir.pin()
        with pytest.raises(StorageFailure):
            maildir.write_pin(bytes(mailbox.PIN_LIMIT + 1))


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / "bob" / name).write_bytes(name.encode())


def test_walk_finds_every_message_of_every_folder(root: Path) -> None:
    put(root, "new/1", "cur/2:2,RS", "cur/.hidden", "tmp/3", ".Junk/cur/4:2,", ".a.b/new/5")
    put(root, "dovecot-uidlist", ".Junk/maildirfolder")
    (root / "bob/.notafolder").mkdir()
    (root / "bob/.linked").symlink_to(root / "bob/.Junk")
    found = []
    with bob(root) as maildir:
        for message in maildir.walk():
            with message.open() as file:
                place = f"{message.subdirectory}/{message.name}"
                assert file.read().endswith(place.encode())
                found.append((message.folder, place, message.flags))
    assert found == [
        ("INBOX", "new/1", ""),
        ("INBOX", "cur/2:2,RS", "RS"),
        ("Junk", "cur/4:2,", ""),
        ("a/b", "new/5", ""),
    ]


def test_walk_of_layout_fs_passes_over_a_directory_removed_meanwhile(root: Path) -> None:
    put(root, "a/b/new/1")
    for name in ("tmp", "new", "cur"):
        (root / "bob/a" / name).mkdir()
    put(root, "a/new/0")
    found = []
    with bob(root, "fs") as maildir:
        for message in maildir.walk():
            found.append((message.folder, message.name))
            if message.folder == "a":
                (root / "bob/a").rename(root / "gone")
    assert found == [("a", "0")]


def test_walk_of_layout_fs(root: Path) -> None:
    put(root, "new/1", "Junk/cur/2:2,S", "a/b/new/3", ".Junk/new/4", "x.y/new/5")
    with bob(root, "fs") as maildir:
        found = [(m.folder, m.name) for m in maildir.walk()]
    # Dovecot lists a folder whose name begins with a dot, and one with a dot in it.
    assert found == [
        ("INBOX", "1"),
        (".Junk", "4"),
        ("Junk", "2:2,S"),
        ("a/b", "3"),
        ("x.y", "5"),
    ]


def test_walk_gives_a_message_that_is_just_being_read_once_as_in_cur(root: Path) -> None:
    put(root, "new/1", "cur/1:2,S")
    with bob(root) as maildir:
        assert [(m.subdirectory, m.name) for m in maildir.walk()] == [("cur", "1:2,S")]


def test_a_message_is_opened_under_the_name_that_it_has_since_it_was_listed(root: Path) -> None:
    directory = root / "alice/Maildir"
    with Maildir.open(root, directory, create=True) as maildir:
        (directory / "new/1.a").write_text("text")
        (file,) = maildir.walk()
        walk = maildir.walk()
        file = next(walk)
        (directory / "new/1.a").rename(directory / "cur/1.a:2,RS")
        with file.open() as opened:
            assert opened.read() == b"text"
        (directory / "cur/1.a:2,RS").rename(directory / "1.a")
        with pytest.raises(NotFound, match="moved"):
            file.open()


def test_walk_opens_no_link_no_fifo_and_says_what_moved(root: Path) -> None:
    put(root, "new/3")
    (root / "bob/new/1").symlink_to("/etc/hostname")
    os.mkfifo(root / "bob/new/2")
    errors: list[type[Exception]] = []
    with bob(root) as maildir:
        for message in maildir.walk():
            (root / "bob/new/3").unlink(missing_ok=True)
            try:
                message.open()
            except (UnsafePath, NotFound) as error:
                errors.append(type(error))
    assert errors == [UnsafePath, UnsafePath, NotFound]


def test_walk_passes_over_a_folder_removed_meanwhile(root: Path) -> None:
    put(root, "new/1", ".Junk/new/2", ".a.b/new/3")
    names = []
    with bob(root) as maildir:
        for message in maildir.walk():
            names.append(message.name)
            (root / "bob/.Junk").rename(root / "gone") if message.name == "1" else None
    assert names == ["1", "3"]


@pytest.mark.parametrize(
    ("style", "inbox", "folder"),
    [
        ("maildir++", "dora/Maildir/.INBOX", ".Junk"),
        ("maildir++", "dora/inbox", ".Junk"),
        ("fs", "dora/Maildir/INBOX", "Junk"),
        ("fs", "dora/Maildir/.INBOX", "INBOX/Junk"),
    ],
)
def test_inbox_elsewhere_holds_what_goes_to_no_folder(
    tmp_path: Path, style: str, inbox: str, folder: str
) -> None:
    path, inbox_path = tmp_path / "dora/Maildir", tmp_path / inbox

    def opened(*, create: bool) -> Maildir:
        layout = Layout(FolderStyle(style))
        return Maildir.open(tmp_path, path, create=create, inbox=inbox_path, layout=layout)

    with pytest.raises(NotFound):
        opened(create=False)
    path.mkdir(parents=True)
    with opened(create=False) as maildir:
        assert maildir.pin() is None
        assert list(maildir.walk()) == []
        with pytest.raises(StorageFailure, match="INBOX is missing"):
            maildir.create()
    for name in ("tmp", "new", "cur"):
        (path / folder / name).mkdir(parents=True)
    where = folder.removeprefix(".")
    with opened(create=True) as maildir:
        maildir.write_pin(b"pin")
        assert maildir.find_folder("inbox") == "INBOX"
        assert maildir.find_folder(where) == where
        for target in (None, where, "Nowhere"):
            with maildir.create(target) as message:
                message.commit(0, 0)
        assert [message.folder for message in maildir.walk()] == ["INBOX", "INBOX", where]
        assert maildir.pin() == b"pin"
    assert len(list((inbox_path / "new").iterdir())) == 2
    assert not list((inbox_path / "tmp").iterdir())
    assert not (path / "tmp").exists()


def test_what_was_stored_before_inbox_moved_is_still_found(root: Path) -> None:
    put(root, "new/1", ".Junk/new/2")
    inbox = root / "bob/.INBOX"
    with Maildir.open(root, root / "bob", create=True, inbox=inbox) as maildir:
        assert [(m.folder, m.name) for m in maildir.walk()] == [("INBOX", "1"), ("Junk", "2")]


def test_inbox_outside_the_root_or_behind_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "bob/.INBOX").symlink_to(root / "bob/.Junk")
    for inbox in (Path("/var/mail/bob"), root / "bob/.INBOX"):
        for create in (True, False):
            with pytest.raises(UnsafePath):
                Maildir.open(root, root / "bob", create=create, inbox=inbox)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


HOUR = 3600


def test_sweep_takes_only_old_unlocked_files_of_this_host(root: Path) -> None:
    stale, young, foreign = (unique_name(), unique_name(), unique_name("elsewhere"))
    put(root, f"tmp/{stale}", f"tmp/{young}", f"tmp/{foreign}", "tmp/1795427558.M1P2.vm")
    put(root, f".Junk/tmp/{stale}", f"new/{stale}")
    for name in (f"tmp/{stale}", f"tmp/{foreign}", "tmp/1795427558.M1P2.vm", f"new/{stale}"):
        age(root / "bob" / name, 40 * HOUR)
    age(root / "bob/.Junk/tmp" / stale, 1 * HOUR)
    with bob(root) as maildir:
        assert maildir.sweep_tmp() == 2
        assert maildir.sweep_tmp() == 0
    left = {p.name for p in (root / "bob/tmp").iterdir()}
    assert left == {young, foreign, "1795427558.M1P2.vm"}
    assert (root / "bob/new" / stale).exists()
    assert not (root / "bob/.Junk/tmp" / stale).exists()


def test_sweep_spares_a_delivery_that_takes_long(root: Path) -> None:
    with bob(root) as maildir, maildir.create() as message:
        message.write(b"slow")
        age(root / "bob/tmp" / message.name, 100 * HOUR)
        assert maildir.sweep_tmp() == 0
        message.commit(4, 4)
    assert len(list((root / "bob/new").iterdir())) == 1


def test_sweep_and_walk_of_a_maildir_that_is_being_made(root: Path) -> None:
    (root / "bob/tmp").rmdir()
    with bob(root, "fs") as maildir:
        assert maildir.sweep_tmp() == 0
        assert {m.folder for m in maildir.walk()} == set()


@pytest.mark.parametrize(("hours", "swept"), [(35, 0), (37, 1)])
def test_without_locks_sweep_waits_36_hours(
    root: Path, monkeypatch: pytest.MonkeyPatch, hours: int, swept: int
) -> None:
    def no_locks(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    stale = unique_name()
    put(root, f"tmp/{stale}")
    age(root / "bob/tmp" / stale, hours * HOUR)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with bob(root) as maildir:
        assert maildir.sweep_tmp() == swept


def test_sweep_leaves_a_link_with_one_of_our_names(root: Path) -> None:
    (root / "bob/tmp" / unique_name()).symlink_to("/etc/hostname")
    with bob(root) as maildir:
        assert maildir.sweep_tmp() == 0
