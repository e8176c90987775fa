import os
from pathlib import Path

import pytest

from lmtp_atrest.delivery.unclear import Claim, UnclearEnds
from lmtp_atrest.errors import Busy
from tests.delivery.sites import MESSAGE, DeliverySite
from tests.sites import PASSWORD

STORED = ["250 2.0.0 stored"]
AGAIN = ["250 2.0.0 stored already"]


async def test_a_retry_after_an_unclear_end_is_stored_once(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    assert await mail.send("alice@example.org", confirm=False) == STORED
    mail.delivery = mail.make(mail.site.records)  # another process, or the same after a crash
    assert await mail.send("alice@example.org", confirm=False) == AGAIN
    assert await mail.send("alice@example.org") == AGAIN
    assert len(mail.files()) == 1
    assert await mail.send("alice@example.org") == STORED


async def test_a_large_retry_is_stored_once_and_leaves_nothing_in_tmp(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    large = MESSAGE * 3000
    assert await mail.send("alice@example.org", message=large, confirm=False) == STORED
    assert await mail.send("alice@example.org", message=large) == AGAIN
    assert len(mail.files()) == 1
    assert mail.files("tmp") == []


async def test_two_equal_messages_that_were_both_meant_are_both_stored(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    assert await mail.send("alice@example.org") == STORED
    assert await mail.send("alice@example.org") == STORED
    assert len(mail.files()) == 2


async def test_other_content_sender_or_mailbox_is_another_message(mail: DeliverySite) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org", PASSWORD)
    assert await mail.send("alice@example.org", confirm=False) == STORED
    assert await mail.send("alice@example.org", message=MESSAGE + b"x\n") == STORED
    assert await mail.send("alice@example.org", sender="t") == STORED
    assert await mail.send("bob@example.org") == STORED


async def test_a_failed_delivery_is_not_remembered(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.site.add(password=PASSWORD)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(5, "EIO")))
    assert (await mail.send("alice@example.org", confirm=False))[0].startswith("451")
    monkeypatch.setattr(os, "fsync", fsync)
    assert await mail.send("alice@example.org", confirm=False) == STORED
    assert len(mail.files()) == 1


@pytest.mark.parametrize("renamed", [True, False])
async def test_a_process_killed_around_the_rename(mail: DeliverySite, renamed: bool) -> None:
    mail.site.add(password=PASSWORD)
    await mail.send("alice@example.org", confirm=False)
    (stored,) = mail.files()
    (note,) = (p for p in (mail.site.root / "unclear").iterdir() if p.name != "key")
    note.write_text(stored.name)  # as the file stands before the rename
    if renamed:
        stored.rename(stored.parent.parent / "cur" / f"{stored.name}:2,S")  # read meanwhile
    else:
        stored.unlink()
    assert await mail.send("alice@example.org") == (AGAIN if renamed else STORED)
    assert len(mail.files("new") + mail.files("cur")) == 1


def test_the_same_message_is_not_stored_twice_at_once(tmp_path: Path) -> None:
    first, second = UnclearEnds(tmp_path), UnclearEnds(tmp_path)
    digest = first.digest(b"a")
    assert digest == second.digest(b"a")
    with first.claim(digest), pytest.raises(Busy), second.claim(digest):
        pass
    with second.claim(digest) as claim:
        assert not claim.stored_before(lambda _name: True)


def test_the_digest_is_keyed_and_tells_parts_apart(tmp_path: Path) -> None:
    ends = UnclearEnds(tmp_path / "a")
    assert ends.digest(b"ab", b"c") != ends.digest(b"a", b"bc")
    assert ends.digest(b"a") != UnclearEnds(tmp_path / "b").digest(b"a")
    assert (tmp_path / "a" / "key").stat().st_mode & 0o777 == 0o600


def test_notes_older_than_a_day_are_swept_and_the_key_stays(tmp_path: Path) -> None:
    ends = UnclearEnds(tmp_path)
    for age in (0, 25 * 3600):
        with ends.claim(ends.digest(b"%d" % age)) as claim:
            claim.stored()
    old = tmp_path / ends.digest(b"%d" % (25 * 3600))
    for path in (old, tmp_path / "key"):
        os.utime(path, (1, 1))
    later = UnclearEnds(tmp_path)
    with later.claim(later.digest(b"0")) as claim:
        assert claim.stored_before(lambda _name: False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([ends.digest(b"0"), "key"])


async def test_without_its_directory_mail_is_delivered_all_the_same(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    blocked = mail.site.root / "file"
    blocked.touch()
    ends = UnclearEnds(blocked / "sub")
    with ends.claim(ends.digest(b"a")) as claim:
        assert isinstance(claim, Claim)
        assert not claim.stored_before(lambda _name: True)
        claim.note("x")
        claim.stored()
