from pathlib import Path

import pytest

from lmtp_atrest import config
from lmtp_atrest.maildir import FolderStyle, Layout, UnsafePath
from lmtp_atrest.maildir.caches import CACHE_NAME, forget_caches, index_directories

DOTTED, FS = Layout(), Layout(FolderStyle.FS)


@pytest.mark.parametrize(
    ("folder", "layout", "below"),
    [
        ("INBOX", DOTTED, [".", ".INBOX"]),
        ("INBOX", FS, [".", "INBOX"]),
        ("a/b", DOTTED, [".a.b"]),
        ("a/b", FS, ["a/b"]),
        ("Entwürfe", DOTTED, [".Entw&APw-rfe", ".Entwürfe"]),
        ("R&D", DOTTED, [".R&-D", ".R&D"]),  # and a directory that is no modified UTF-7
        ("a/../b", FS, []),
    ],
)
def test_where_an_index_may_lie(folder: str, layout: Layout, below: list[str]) -> None:
    base = Path("/indexes/alice")
    assert index_directories(base, folder, layout) == [base / path for path in below]


def test_a_cache_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    base, others = tmp_path / "alice", tmp_path / "bob"
    for directory in (base / ".a", others):
        directory.mkdir(parents=True)
        (directory / CACHE_NAME).touch()
        (directory / "dovecot.index").touch()
    (base / ".b").symlink_to(others)
    forget_caches((tmp_path / "nowhere", base), "a", DOTTED)
    assert [path.name for path in (base / ".a").iterdir()] == ["dovecot.index"]
    with pytest.raises(UnsafePath):
        forget_caches((base,), "b", DOTTED)
    assert (others / CACHE_NAME).exists()


def test_an_account_s_index_directories_are_told_by_its_home_and_its_names() -> None:
    mail = config.parse(
        'mail: {root: /v, index: ["{home}/index", "/i/{domain}/{local}", "{maildir}-i"]}'
    ).mail
    found = mail.indexes_of("/v/a", "/v/a/Maildir", ("alice@example.org", "al@example.org"))
    assert list(map(str, found)) == [
        "/v/a/index",
        "/i/example.org/alice",
        "/i/example.org/al",
        "/v/a/Maildir-i",
    ]
    assert list(map(str, mail.indexes_of("/h", "/m", ("../x",)))) == ["/h/index", "/m-i"]
