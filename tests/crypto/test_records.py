from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.crypto.records import (
    AccountRecord,
    AdminRecord,
    BadDocument,
    Kind,
    SignedRecord,
    SiteKey,
    SitePublic,
    State,
    check_pin,
)
from lmtp_atrest.errors import Alarm, ConfigError

KEY = SiteKey.generate()
OTHER_SITE = SiteKey.generate()


def account(epoch: int = 3, **changes: object) -> AccountRecord:
    fields: dict[str, object] = {
        "site_id": KEY.site_id,
        "account_id": "a1" * 16,
        "epoch": epoch,
        "created": 1000,
        "names": ("alice@example.org", "älias@xn--bcher-kva.example"),
        "home": "/var/vmail/alice",
        "maildir": "/var/vmail/alice/Maildir",
        "state": State.ENCRYPTED,
        "public_key": b"\x30\x00",
        "key_ids": ("ff" * 32,),
        "vault_id": "b2" * 16,
        "vault_commitment": b"c" * 32,
        "slots_digest": b"d" * 32,
    }
    return AccountRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_signed_record_reads_back_as_it_was() -> None:
    signed = KEY.sign(account())
    assert KEY.public.verify(signed.document) == signed


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_a_document_with_any_bit_changed_proves_nothing(position: int, bit: int) -> None:
    document = bytearray(KEY.sign(account()).document)
    document[position % len(document)] ^= 1 << bit
    # The base64 of a signature has unused bits at its end; whatever is accepted must be the same.
    try:
        found = KEY.public.verify(bytes(document)).record
    except BadDocument:
        return
    assert found == account()


def test_another_sites_signature_does_not_count() -> None:
    forged = OTHER_SITE.sign(account())
    with pytest.raises(BadDocument):
        KEY.public.verify(forged.document)


def test_a_record_of_another_site_does_not_count_under_our_key() -> None:
    with pytest.raises(BadDocument, match="another site"):
        KEY.public.verify(KEY.sign(account(site_id="0" * 32)).document)


def test_an_admin_record_is_not_an_account_record() -> None:
    document = KEY.sign_admin(AdminRecord(KEY.site_id, 1, "allowed"))
    assert KEY.public.verify_admin(document).policy == "allowed"
    with pytest.raises(BadDocument):
        KEY.public.verify(document)


@pytest.mark.parametrize("junk", [b"", b"\n\n\n\n", b"\xff", b"a\nb\nc\nd\n", b"x" * 4096])
def test_junk_is_a_bad_document(junk: bytes) -> None:
    with pytest.raises(BadDocument):
        KEY.public.verify(junk)


def test_key_files_read_back_and_older_keys_still_count(tmp_path: Path) -> None:
    secret, public = tmp_path / "site.key", tmp_path / "site.pub"
    secret.touch(mode=0o600)
    secret.write_bytes(KEY.with_new_key().text().reveal())
    loaded = SiteKey.load(secret)
    public.write_text(loaded.public.text())
    assert SitePublic.load(public).key_names == loaded.public.key_names
    assert loaded.public.verify(KEY.sign(account()).document).record == account()
    newest = loaded.only_newest()
    with pytest.raises(BadDocument):
        newest.public.verify(KEY.sign(account()).document)
    assert newest.public.verify(loaded.sign(account()).document).record == account()


def test_key_files_that_are_missing_open_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "site.key"
    with pytest.raises(ConfigError, match="init"):
        SiteKey.load(secret)
    secret.touch(mode=0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        SiteKey.load(secret)
    secret.write_text(KEY.public.text())
    secret.chmod(0o600)
    with pytest.raises(ConfigError, match="kind"):
        SiteKey.load(secret)


def nobody(_account_id: str) -> SignedRecord | None:
    return None


def store_with(record: AccountRecord) -> Callable[[str], SignedRecord | None]:
    signed = KEY.sign(record)
    return lambda account_id: signed if account_id == record.account_id else None


def test_a_first_ciphertext_needs_a_pin_and_a_plain_account_none() -> None:
    assert check_pin(KEY.sign(account()), None, KEY.public, nobody)
    assert not check_pin(KEY.sign(account(state=State.PLAIN)), None, KEY.public, nobody)
    assert not check_pin(None, None, KEY.public, nobody)


@pytest.mark.parametrize(
    ("stored", "pinned", "wanted"),
    [
        (account(3), account(3), False),
        (account(4), account(3), True),
        (account(4, state=State.PLAIN), account(3), True),
        (account(1, account_id="c3" * 16, created=2000), account(3), True),
    ],
    ids=["same", "newer", "newer and plain", "the name's next owner"],
)
def test_a_pin_is_written_anew_when_the_record_is_newer(
    stored: AccountRecord, pinned: AccountRecord, wanted: bool
) -> None:
    assert check_pin(KEY.sign(stored), KEY.sign(pinned).document, KEY.public, nobody) is wanted


@pytest.mark.parametrize(
    ("stored", "pinned", "complaint"),
    [
        (account(2), account(3), "rollback"),
        (account(2, state=State.PLAIN), account(3), "rollback"),
        (account(3, state=State.PLAIN), account(3), "two records"),
        (account(3, public_key=b"\x30\x01"), account(3), "two records"),
        (account(9, account_id="c3" * 16, created=999), account(3), "older than"),
        (account(9, account_id="c3" * 16, created=1000), account(3), "older than"),
        (None, account(3), "no record"),
    ],
    ids=[
        "lower",
        "lower and plain",
        "fork to plain",
        "fork of the key",
        "replayed owner",
        "owner of the same moment",
        "row deleted",
    ],
)
def test_what_only_an_attack_or_a_restore_explains_is_an_alarm(
    stored: AccountRecord | None, pinned: AccountRecord, complaint: str
) -> None:
    signed = KEY.sign(stored) if stored else None
    with pytest.raises(Alarm, match=complaint):
        check_pin(signed, KEY.sign(pinned).document, KEY.public, nobody)


def test_a_removed_accounts_pin_lets_the_address_go() -> None:
    gone = store_with(account(4, state=State.REMOVED))
    assert not check_pin(None, KEY.sign(account(3)).document, KEY.public, gone)


@pytest.mark.parametrize("found", [account(2, state=State.REMOVED), account(4)])
def test_an_older_removal_or_a_living_account_of_another_name_is_an_alarm(
    found: AccountRecord,
) -> None:
    with pytest.raises(Alarm, match="another name"):
        check_pin(None, KEY.sign(account(3)).document, KEY.public, store_with(found))


def test_a_pin_by_a_retired_key_gives_way_to_a_newer_record_only() -> None:
    after = KEY.with_new_key()
    retired = after.only_newest().public
    pin = KEY.sign(account(3)).document
    assert check_pin(after.sign(account(3)), pin, retired, nobody)
    with pytest.raises(Alarm):
        check_pin(after.sign(account(2)), pin, retired, nobody)
    with pytest.raises(Alarm):
        check_pin(None, pin, retired, nobody)
    with pytest.raises(Alarm):
        check_pin(after.sign(account(9, account_id="c3" * 16, created=9)), pin, retired, nobody)


@pytest.mark.parametrize("pin", [b"", b"junk", b"a\nb\nsigned-by c\nsignature d\n"])
def test_a_damaged_pin_is_an_alarm_whatever_the_store_says(pin: bytes) -> None:
    for stored in (None, KEY.sign(account(9))):
        with pytest.raises(Alarm):
            check_pin(stored, pin, KEY.public, nobody)


def test_a_record_without_certificates_is_written_as_before_there_were_any() -> None:
    body = account().body()
    assert not {"kind", "certificates"} & body.keys()
    found = AccountRecord.from_body(body)
    assert (found.kind, found.certificates) == (Kind.MAIL_CRYPT, ())
    assert found == account()


def test_certificates_are_part_of_what_is_signed() -> None:
    own = account(kind=Kind.OPENPGP, certificates=(b"\x00\xff", b"x"), vault_id="")
    assert KEY.public.verify(KEY.sign(own).document).record == own
    assert own.has_own_certificates
    assert not own.holds_ciphertext
    assert account(kind=Kind.OPENPGP).holds_ciphertext  # old mail of its own key
    with pytest.raises(ValueError, match="pgp"):
        AccountRecord.from_body({**own.body(), "kind": "pgp"})


def test_an_account_with_certificates_is_pinned_like_others() -> None:
    """No pin is due only where mail is plain; without, an older plain record would not show."""
    own = KEY.sign(account(kind=Kind.OPENPGP, certificates=(b"x",), vault_id=""))
    assert check_pin(own, None, KEY.public, lambda _: None)
    plain = KEY.sign(account(epoch=2, state=State.PLAIN))
    with pytest.raises(Alarm, match="rollback"):
        check_pin(plain, own.document, KEY.public, lambda _: None)
