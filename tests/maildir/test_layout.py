import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.maildir.layout import (
    FolderNames,
    FolderStyle,
    Layout,
    decode_mutf7,
    encode_mutf7,
)

DOTTED, NESTED = Layout(), Layout(FolderStyle.FS)
DOTTED_UTF8 = Layout(names=FolderNames.UTF_8)
NESTED_UTF8 = Layout(FolderStyle.FS, FolderNames.UTF_8)
LAYOUTS = (DOTTED, NESTED, DOTTED_UTF8, NESTED_UTF8)

Candidates = tuple[tuple[str, ...], ...]

# The directories that Dovecot 2.3.19 and 2.4.1 made for these names, in each layout.
FOLDERS: list[tuple[str, Candidates, Candidates]] = [
    ("Junk", ((".Junk",),), (("Junk",),)),
    ("a/b", ((".a.b",),), (("a", "b"),)),
    ("a.b", ((".a.b",),), (("a.b",), ("a", "b"))),
    ("a.b/c", ((".a.b.c",),), (("a.b", "c"), ("a", "b", "c"))),
    (".a", (), ((".a",),)),
    ("Entwürfe", ((".Entw&APw-rfe",),), (("Entw&APw-rfe",),)),
    ("Entwu\u0308rfe", ((".Entw&APw-rfe",),), (("Entw&APw-rfe",),)),
    ("R&D", ((".R&-D",),), (("R&-D",),)),
    ("台北", ((".&U,BTFw-",),), (("&U,BTFw-",),)),
    ("with space", ((".with space",),), (("with space",),)),
    ("~root", ((".~root",),), (("~root",),)),
    ("cur", ((".cur",),), ()),
    ("a.tmp", ((".a.tmp",),), (("a.tmp",),)),
    ("inbox", ((),), ((),)),
    ("Inbox/a", ((".Inbox.a",),), (("Inbox", "a"),)),
]
NO_FOLDERS = [
    "", ".", "..", "...", "a..b/", "../a", "a/..", "a/../b", "a//b", "/", "/etc", "a\0b", "a\nb",
    "a\x7f", "\x85", "x" * 256, "ü" * 200, "\ud800", "/".join("a" * 17),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dotted", "nested"), FOLDERS, ids=[f[0] for f in FOLDERS])
def test_folder_names_become_directories(
    name: str, dotted: Candidates, nested: Candidates
) -> None:
    assert DOTTED.candidates(name) == dotted
    assert NESTED.candidates(name) == nested


def test_utf8_layouts_write_names_as_they_are_for_people() -> None:
    assert DOTTED_UTF8.candidates("Entwu\u0308rfe/R&D") == ((".Entwürfe.R&D",),)
    assert NESTED_UTF8.candidates("日本語") == (("日本語",),)
    assert DOTTED_UTF8.name_of((".Entwürfe.&AOk-",)) == "Entwürfe/&AOk-"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NO_FOLDERS, ids=ascii)
def test_tricks_are_no_folders_and_no_errors(name: str, layout: Layout) -> None:
    # With LAYOUT=fs three dots are a directory like another.
    assert layout.candidates(name) in ((), (("...",),))


@given(st.text(st.characters(exclude_categories=[])) | st.text("./&~\0aü"))
def test_nothing_a_sender_writes_becomes_a_path(name: str) -> None:
    for layout in LAYOUTS:
        for directories in layout.candidates(name):
            for directory in directories:
                assert directory not in ("", ".", "..", "tmp", "new", "cur")
                assert "/" not in directory
                assert "\0" not in directory
                assert len(os.fsencode(directory)) <= 255
                assert layout.style is FolderStyle.FS or directory.startswith(".")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_modified_utf7_round_trips_in_printable_ascii(text: str) -> None:
    encoded = encode_mutf7(text)
    assert all(" " <= c <= "~" for c in encoded)
    assert decode_mutf7(encoded) == text


# RFC 3501, section 5.1.3, and its examples of what must not be written.
@pytest.mark.parametrize(
    "name", ["&Jjo!", "&U,BTFw-&ZeVnLIqe-", "&", "&A-", "a&AGE-", "&2AA-", "ü"]
)
def test_what_is_not_modified_utf7_is_shown_as_it_is(name: str) -> None:
    assert decode_mutf7(name) == name


def test_rfc_example_is_decoded() -> None:
    assert decode_mutf7("~peter/mail/&U,BTFw-/&ZeVnLIqe-") == "~peter/mail/台北/日本語"


@given(st.text("abü&~ ./", min_size=1, max_size=20))
def test_folder_name_for_people_is_the_one_the_sender_wrote(name: str) -> None:
    for layout in LAYOUTS:
        for directories in layout.candidates(name):
            shown = layout.name_of(directories)
            assert shown.replace(".", "/") == unicodedata.normalize("NFC", name).replace(".", "/")
        assert layout.name_of(()) == "INBOX"
