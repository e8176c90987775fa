"""What `mail verify` finds; sizes made right and damaged messages set aside, and nothing else."""

import errno
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lmtp_atrest.conversion import Kind, mending, verify
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.maildir import Layout, Maildir, StorageFailure
from lmtp_atrest.maildir import mending as names
from lmtp_atrest.maildir.layout import FolderStyle
from tests.conversion.mailboxes import OLD, opened, unwrap
from tests.maildir.faulty import Crash, FaultyFilesystem

BODY = b"Subject: a\n\nb\n"
S, W = len(BODY), len(BODY) + BODY.count(b"\n")
STRANGER = PrivateKey.generate(Curve.PRIME256V1)


def made(root: Path) -> Path:
    maildir = root / "alice"
    for folder in ("", ".Sent"):
        for name in ("tmp", "new", "cur"):
            (maildir / folder / name).mkdir(parents=True)
    return maildir


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    return made(tmp_path)


def put(maildir: Path, name: str, content: bytes | None = None, key: PrivateKey = OLD) -> Path:
    path = maildir / name
    path.write_bytes(dcrypt.seal(key.public, BODY) if content is None else content)
    return path


def kinds(tmp_path: Path, maildir: Path) -> dict[str, Kind]:
    with opened(tmp_path, maildir) as box:
        return {fault.path: fault.kind for fault in verify(box, unwrap).faults}


def damaged() -> bytes:
    sealed = dcrypt.seal(OLD.public, BODY)
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def test_each_fault_is_of_its_kind(tmp_path: Path, maildir: Path) -> None:
    put(maildir, f"cur/1.right,S={S},W={W}:2,S")
    put(maildir, "cur/2.without sizes:2,")
    put(maildir, "cur/3.plain,S=1:2,", b"in clear")
    put(maildir, f"cur/4.S,S={S + 1},W={W}:2,")
    put(maildir, f".Sent/new/5.W,S={S},W={W - 1}")
    put(maildir, f"cur/6.tag,S={S},W={W}:2,", damaged())
    put(maildir, f"cur/7.cut,S={S},W={W}:2,", damaged()[:40])
    put(maildir, f"cur/8.key,S={S},W={W}:2,", key=STRANGER)
    (maildir / "cur/9.link:2,").symlink_to("/etc/passwd")
    with opened(tmp_path, maildir) as box:
        report = verify(box, unwrap)
        known = verify(box, None, {OLD.key_id.hex()})
    assert {(fault.path[-20:][:99], fault.kind) for fault in report.faults} == {
        (f"INBOX/cur/4.S,S={S + 1},W={W}:2,"[-20:], Kind.SIZES),
        (f"Sent/new/5.W,S={S},W={W - 1}"[-20:], Kind.SIZES),
        (f"INBOX/cur/6.tag,S={S},W={W}:2,"[-20:], Kind.DAMAGED),
        (f"INBOX/cur/7.cut,S={S},W={W}:2,"[-20:], Kind.DAMAGED),
        (f"INBOX/cur/8.key,S={S},W={W}:2,"[-20:], Kind.MISSING_KEY),
        ("INBOX/cur/9.link:2,", Kind.UNREADABLE),
    }
    assert report.missing == {STRANGER.key_id.hex(): 1}
    assert (report.sealed, report.plain, report.well) == (7, 1, False)
    # By headers alone neither a tag nor W= can be told.
    assert sorted(fault.kind for fault in known.faults) == [
        Kind.DAMAGED,
        Kind.MISSING_KEY,
        Kind.SIZES,
        Kind.UNREADABLE,
    ]


def test_an_end_of_the_session_is_no_fault_of_the_mail(tmp_path: Path, maildir: Path) -> None:
    put(maildir, "cur/1.a:2,")

    def ended(_header: dcrypt.Header) -> dcrypt.MessageKey:
        message = "the mail is closed again"
        raise TemporaryFailure(message)

    with opened(tmp_path, maildir) as box, pytest.raises(TemporaryFailure):
        verify(box, ended)


UIDLIST = """3 V1795630908 N6 G65167c0d3c27076b1d00000083ecc375
1 :1.right,S={s},W={w}
2 W9 :2.wrong,S=99,W={w}
3 :3.flags and more,S=98,W=98,x=y:2,S
"""


def test_sizes_are_corrected_in_names_and_in_the_list_of_uids(
    tmp_path: Path, maildir: Path
) -> None:
    put(maildir, f"cur/1.right,S={S},W={W}:2,S")
    put(maildir, f"new/2.wrong,S=99,W={W}")
    put(maildir, "cur/3.flags and more,S=98,W=98,x=y:2,FS")
    put(maildir, f".Sent/cur/4.no list,W={W + 2}:2,")
    uidlist = put(maildir, "dovecot-uidlist", UIDLIST.format(s=S, w=W).encode())
    uidlist.chmod(0o640)
    with opened(tmp_path, maildir) as box:
        assert mending.correct(box, verify(box, unwrap).faults) == 3
    right = f",S={S},W={W}"
    assert [path.name for path in (maildir / "new").iterdir()] == [f"2.wrong{right}"]
    assert sorted(path.name for path in (maildir / "cur").iterdir()) == [
        f"1.right{right}:2,S",
        f"3.flags and more,x=y{right}:2,FS",
    ]
    assert [path.name for path in (maildir / ".Sent/cur").iterdir()] == [f"4.no list{right}:2,"]
    assert uidlist.read_text() == UIDLIST.format(s=S, w=W).replace(
        f"S=99,W={W}", right[1:]
    ).replace(",S=98,W=98,x=y", f",x=y{right}")
    assert uidlist.stat().st_mode & 0o777 == 0o640
    assert not (maildir / "dovecot-uidlist.lock").exists()
    assert kinds(tmp_path, maildir) == {}


def test_nothing_is_renamed_while_the_list_of_uids_is_locked(
    tmp_path: Path, maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = put(maildir, "cur/1.wrong,S=9:2,")
    put(maildir, "dovecot-uidlist", b"3 V1\n1 :1.wrong,S=9\n")
    lock = put(maildir, "dovecot-uidlist.lock", b"")
    monkeypatch.setattr(names, "LOCK_SECONDS", 0.1)
    with opened(tmp_path, maildir) as box, pytest.raises(StorageFailure, match="held by another"):
        mending.correct(box, verify(box, unwrap).faults)
    assert wrong.exists()
    assert lock.exists()


def test_flags_that_change_meanwhile_stay_and_nobody_s_place_is_taken(
    tmp_path: Path, maildir: Path
) -> None:
    first, second = (put(maildir, f"cur/{n}.wrong,S=9,W={W}:2,") for n in (1, 2))
    other = put(maildir, f"cur/2.wrong,S={S},W={W}:2,", b"somebody else's")
    with opened(tmp_path, maildir) as box:
        faults = verify(box, unwrap).faults
        first.rename(maildir / f"cur/1.wrong,S=9,W={W}:2,RS")
        with pytest.raises(StorageFailure, match="exists"):
            mending.correct(box, faults)
    assert (maildir / f"cur/1.wrong,S={S},W={W}:2,RS").exists()
    assert second.exists()
    assert other.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("style", FolderStyle)
def test_what_is_damaged_is_set_aside_and_nothing_else(
    tmp_path: Path, maildir: Path, style: FolderStyle
) -> None:
    bad = [put(maildir, "new/1.a", damaged()), put(maildir, "cur/2.b:2,FS", damaged())]
    kept = [
        put(maildir, f"cur/3.c,S={S},W={W}:2,"),
        put(maildir, "cur/4.d:2,", key=STRANGER),
        put(maildir, "cur/5.e,S=9:2,"),
    ]
    with Maildir.open(tmp_path, maildir, create=False, layout=Layout(style)) as box:
        faults = [f for f in verify(box, unwrap).faults if f.kind is Kind.DAMAGED]
        bad[1] = bad[1].rename(maildir / "cur/2.b:2,RS")  # between looking and moving
        contents = [path.read_bytes() for path in bad]
        assert mending.quarantine(box, faults, unwrap) == 2
        report = verify(box, unwrap)
        assert mending.quarantine(box, report.faults, unwrap) == len(report.faults) == 2
    aside = maildir / (".Quarantine" if style is FolderStyle.MAILDIR_PLUS_PLUS else "Quarantine")
    assert [(aside / "cur" / name).read_bytes() for name in ("1.a", "2.b:2,RS")] == contents
    assert report.quarantined == 2
    assert kept[0].exists()
    assert not any(path.exists() for path in bad)


def test_a_name_that_is_taken_in_quarantine_costs_no_message(
    tmp_path: Path, maildir: Path
) -> None:
    for folder in ("", ".Sent"):
        put(maildir / folder, "cur/1.same:2,F", damaged())
    with opened(tmp_path, maildir) as box:
        assert mending.quarantine(box, verify(box, unwrap).faults, unwrap) == 2
    aside = list((maildir / ".Quarantine/cur").iterdir())
    assert len(aside) == 2
    assert all(path.name.endswith(":2,F") for path in aside)


def test_what_was_healed_meanwhile_stays(tmp_path: Path, maildir: Path) -> None:
    path = put(maildir, "cur/1.a:2,", damaged())
    with opened(tmp_path, maildir) as box:
        faults = verify(box, unwrap).faults
        put(maildir, "tmp/1").replace(path)
        assert mending.quarantine(box, faults, unwrap) == 0
    assert path.exists()


def stored(maildir: Path) -> list[bytes]:
    found = (p for p in maildir.rglob("*") if p.parent.name in ("new", "cur") and p.is_file())
    return sorted(path.read_bytes() for path in found)


@pytest.mark.parametrize(
    "error", [Crash, lambda: OSError(errno.EIO, "broken")], ids=["killed", "EIO"]
)
def test_cut_short_at_any_call_nothing_is_lost_and_the_next_run_ends_it(
    tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    calls = 0
    for step in itertools.count():
        root = tmp_path / str(step)
        maildir = made(root)
        put(maildir, f"cur/1.wrong,S=9,W={W}:2,")
        put(maildir, f"new/2.wrong,S={S},W=9")
        put(maildir, "cur/3.damaged:2,S", damaged())
        put(
            maildir,
            "dovecot-uidlist",
            b"3 V1\n1 :1.wrong,S=9,W=%d\n2 :2.wrong,S=%d,W=9\n" % (W, S),
        )
        before = stored(maildir)
        with opened(root, maildir) as box:
            faults = verify(box, unwrap).faults
        fs = FaultyFilesystem(step, error())
        with (
            suppress(Crash, StorageFailure),
            Maildir.open(root, maildir, create=False, fs=fs) as box,
        ):
            mending.correct(box, faults)
            mending.quarantine(box, [f for f in faults if f.kind is Kind.DAMAGED], unwrap)
        assert stored(maildir) == before
        # It names its process: a next one, and Dovecot, see that this is gone.
        (maildir / "dovecot-uidlist.lock").unlink(missing_ok=True)
        with opened(root, maildir) as box:
            again = verify(box, unwrap).faults
            mending.correct(box, again)
            mending.quarantine(box, [f for f in again if f.kind is Kind.DAMAGED], unwrap)
            assert verify(box, unwrap).well
        assert stored(maildir) == before
        calls = max(calls, len(fs.calls))
        if len(fs.calls) <= step:
            break
    assert calls > 30
