import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.maildir import names
from lmtp_atrest.maildir.names import FolderStyle, decode_mutf7, encode_mutf7, folder_directories

FOLDERS = [
    ("Junk", (".Junk",), ("Junk",)),
    ("a.b", (".a.b",), ("a", "b")),
    ("Entwürfe", (".Entw&APw-rfe",), ("Entw&APw-rfe",)),
    ("Entwu\u0308rfe", (".Entw&APw-rfe",), ("Entw&APw-rfe",)),
    ("R&D", (".R&-D",), ("R&-D",)),
    ("台北", (".&U,BTFw-",), ("&U,BTFw-",)),
    ("with space", (".with space",), ("with space",)),
    ("~root", (".~root",), ("~root",)),
    ("cur", (".cur",), None),
    ("a.tmp", (".a.tmp",), None),
    ("inbox", (), ()),
]
NO_FOLDERS = [
    "", ".", "..", "...", ".a", "a.", "a..b", "../a", "a/b", "/", "/etc", "a\0b", "a\nb", "a\x7f",
    "\x85", "x" * 256, "ü" * 200, "\ud800", ".".join("a" * 17),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dotted", "nested"), FOLDERS, ids=[f[0] for f in FOLDERS])
def test_folder_names_become_directories(
    name: str, dotted: tuple[str, ...] | None, nested: tuple[str, ...] | None
) -> None:
    assert folder_directories(name, FolderStyle.MAILDIR_PLUS_PLUS) == dotted
    assert folder_directories(name, FolderStyle.FS) == nested


@pytest.mark.parametrize("style", FolderStyle)
@pytest.mark.parametrize("name", NO_FOLDERS, ids=ascii)
def test_tricks_are_no_folders_and_no_errors(name: str, style: FolderStyle) -> None:
    assert folder_directories(name, style) is None


@given(st.text(st.characters(exclude_categories=[])) | st.text("./&~\0aü"))
def test_nothing_a_sender_writes_becomes_a_path(name: str) -> None:
    for style in FolderStyle:
        for directory in folder_directories(name, style) or ():
            assert directory not in ("", ".", "..", "tmp", "new", "cur")
            assert "/" not in directory
            assert "\0" not in directory
            assert len(directory.encode("ascii")) <= 255
            assert directory.startswith(".") == (style is FolderStyle.MAILDIR_PLUS_PLUS)


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


@given(st.text("abü&~ .", min_size=1, max_size=20))
def test_folder_name_for_people_is_the_one_the_sender_wrote(name: str) -> None:
    for style in FolderStyle:
        if directories := folder_directories(name, style):
            shown = names.folder_name(directories, style)
            assert shown == unicodedata.normalize("NFC", name).replace(".", "/")
    assert names.folder_name((), FolderStyle.FS) == "INBOX"


@pytest.mark.parametrize(
    ("host", "escaped"),
    [
        ("mx1.example.org", "mx1.example.org"),
        ("a/b:c,d", r"a\057b\072c\054d"),
        ("..\n", r"..\012"),
        ("ü", r"\303\274"),
    ],
)
def test_host_is_escaped(host: str, escaped: str) -> None:
    assert names.escaped_host(host) == escaped
    name = names.unique_name(host)
    assert name.endswith(f".{escaped}")
    assert names.is_own_name(name, host)
    assert not names.is_own_name(name, "other")


def test_longest_name_fits_into_a_directory_entry() -> None:
    for host in ("/" * 300, "h" * 300):
        assert len(names.with_sizes(names.unique_name(host), 2**36, 2**37)) < 200


def test_names_of_other_programs_are_not_ours() -> None:
    for name in ("1795427558.M654078P23343.vm", "dovecot.tmp", "", names.unique_name() + ",S=1"):
        assert not names.is_own_name(name)
    assert names.is_own_name(names.unique_name())


def test_flags_and_base() -> None:
    assert names.flags_of("1.M2P3.h,S=4,W=5:2,RS") == "RS"
    assert names.flags_of("1.M2P3.h,S=4,W=5") == ""
    assert names.base_of("1.M2P3.h,S=4,W=5:2,RS") == "1.M2P3.h,S=4,W=5"


def test_sixteen_processes_never_make_the_same_name() -> None:
    program = (
        "from lmtp_atrest.maildir.names import unique_name\n"
        "for _ in range(300): print(unique_name())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(16)
    ]
    made = [name for process in running for name in process.communicate()[0].split()]
    assert len(made) == len(set(made)) == 16 * 300
