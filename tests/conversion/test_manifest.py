"""A manifest says what lay there; whatever was done to it or to the mail since is seen."""

import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lmtp_atrest.conversion.manifest import (
    Difference,
    Manifest,
    ManifestWriter,
    differing_files,
    differing_rows,
    write_files,
)
from lmtp_atrest.crypto.records import BadDocument, ManifestSeal, SiteKey
from tests.conversion.mailboxes import fill, opened

SITE, OTHER = SiteKey.generate(), SiteKey.generate()
ROWS = {"accounts/aa": "11" * 32, "slots/bb": "22" * 32}


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    return fill(tmp_path)


def written(root: Path, maildir: Path, key: SiteKey = SITE) -> bytes:
    file = io.BytesIO()
    writer = ManifestWriter(file, key.site_id)
    writer.rows({"site/admin": "33" * 32})
    writer.account("aa", ["alice@example.org"])
    writer.rows(ROWS)
    with opened(root, maildir) as box:
        assert {found.what for found in write_files(writer, box, root)} == {"same"}
    writer.account("bb", ["bob@example.org"])
    seal = ManifestSeal(key.site_id, 1, writer.lines, bytes.fromhex(writer.digest))
    writer.seal(key.sign_manifest(seal))
    return file.getvalue()


def read(content: bytes) -> Manifest:
    return Manifest(io.BytesIO(content), SITE.public)


def compared(content: bytes, root: Path, maildir: Path) -> list[Difference]:
    manifest, found = read(content), []
    for part in manifest.parts():  # reading files in between must not disturb it
        if part.account_id == "aa":
            with opened(root, maildir) as box:
                found = list(differing_files(manifest, part, box, root))
    return [difference for difference in found if difference.what != "same"]


def test_it_names_accounts_rows_and_every_file(tmp_path: Path, mail: Path) -> None:
    manifest = read(written(tmp_path, mail))
    parts = {part.account_id: part for part in manifest.parts()}
    assert list(parts) == ["", "aa", "bb"]
    assert (parts[""].rows, parts["aa"].rows) == ({"site/admin": "33" * 32}, ROWS)
    assert parts["aa"].names == ["alice@example.org"]
    listed = {
        f"{place}/{entry.base}": (entry.sha256, entry.size)
        for place, folder in parts["aa"].folders.items()
        for entry in manifest.entries(folder)
    }
    files = [p for p in mail.rglob("*") if p.is_file() and p.parent.name in ("new", "cur")]
    assert len(listed) == len(files) > 20
    assert not any(":2," in path for path in listed)
    assert set(parts["aa"].folders) == {
        "alice",
        "alice/.Sent",
        "alice/.a.b.&AOQ-",
    }


def test_what_a_user_does_with_flags_is_no_difference(tmp_path: Path, mail: Path) -> None:
    content = written(tmp_path, mail)
    for path in list((mail / "new").iterdir()):
        path.rename(mail / "cur" / f"{path.name}:2,FRS")
    assert compared(content, tmp_path, mail) == []


def test_what_is_changed_missing_or_new_is_told(tmp_path: Path, mail: Path) -> None:
    content = written(tmp_path, mail)
    first, second, third = sorted((mail / ".Sent/cur").iterdir())[:3]
    second.write_bytes(second.read_bytes() + b"!")
    third.unlink()
    (mail / ".Sent/new/0.later").write_text("new mail")
    (mail / ".new").mkdir()
    first.rename(mail / "cur" / first.name)  # moved to INBOX
    for name in ("tmp", "new", "cur"):
        (mail / ".new" / name).mkdir()
    (mail / ".new/cur/1.x:2,S").write_text("in a new folder")
    (mail / ".a.b.&AOQ-").rename(mail / ".renamed")
    moved = len(list((mail / ".renamed").glob("*/1*")))
    found = compared(content, tmp_path, mail)
    assert Counter(difference.what for difference in found) == {
        "changed": 1,
        "missing": 2 + moved,
        "added": 3 + moved,
    }
    assert Difference("added", "alice/.Sent/0.later") in found
    (changed,) = (difference.path for difference in found if difference.what == "changed")
    assert changed == f"alice/.Sent/{second.name.partition(':')[0]}"


def test_rows_that_differ_are_told() -> None:
    now = {"accounts/aa": "44" * 32, "slots/cc": "22" * 32}
    assert list(differing_rows(ROWS, now)) == [
        Difference("changed", "accounts/aa"),
        Difference("missing", "slots/bb"),
        Difference("added", "slots/cc"),
    ]
    assert list(differing_rows(ROWS, ROWS)) == []


def without_line(number: int) -> Callable[[bytes], bytes]:
    def cut(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        del lines[number]
        return b"".join(lines)

    return cut


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "last byte gone": lambda content: content[:-1],
    "a line more": lambda content: content + b"\n",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "without its seal": lambda content: b"".join(content.splitlines(keepends=True)[:-4]),
    "its seal alone": lambda content: b"".join(content.splitlines(keepends=True)[-4:]),
    "another size": lambda content: content.replace(b'"size":1}', b'"size":2}', 1),
    "another count": lambda content: content.replace(b'"lines":', b'"lines":1', 1),
    "another title": lambda content: content.replace(b"manifest 1", b"manifest 2", 1),
    "no title": without_line(0),
    "a row less": without_line(5),
    "the last account gone": without_line(-5),
    "no signer": without_line(-2),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_one_that_was_cut_or_edited_is_refused(
    tmp_path: Path, mail: Path, edit: Callable[[bytes], bytes]
) -> None:
    content = written(tmp_path, mail)
    assert edit(content) != content
    with pytest.raises(BadDocument):
        read(edit(content))


def test_one_of_another_site_and_another_kind_of_document_are_refused(
    tmp_path: Path, mail: Path
) -> None:
    with pytest.raises(BadDocument):
        read(written(tmp_path, mail, OTHER))
    seal = SITE.sign_manifest(ManifestSeal(SITE.site_id, 1, 2, bytes(32)))
    for verify in (SITE.public.verify, SITE.public.verify_admin):
        with pytest.raises(BadDocument):
            verify(seal)


def test_one_that_is_edited_while_it_is_used_is_refused(tmp_path: Path, mail: Path) -> None:
    path = tmp_path / "manifest"
    path.write_bytes(written(tmp_path, mail))
    with path.open("rb", buffering=0) as file:
        manifest = Manifest(file, SITE.public)
        parts = [part for part in manifest.parts() if part.account_id == "aa"]
        content = path.read_bytes().replace(b'"size":1}', b'"size":2}')
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, content)
        os.close(descriptor)
        with pytest.raises(BadDocument), opened(tmp_path, mail) as box:
            list(differing_files(manifest, parts[0], box, tmp_path))
        with pytest.raises(BadDocument):
            list(manifest.parts())
