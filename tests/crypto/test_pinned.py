"""What earlier versions wrote into the stores still opens; see `tests/vectors/keystore`."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.crypto import app_password, recovery_code
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.records import (
    AccountRecord,
    AdminRecord,
    BadDocument,
    Kind,
    SiteKey,
    SitePublic,
    State,
)
from lmtp_atrest.crypto.slots import (
    Kdf,
    Slot,
    SlotKind,
    SlotState,
    admin_public_key,
    digest_of,
)
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import WrongSecret
from lmtp_atrest.secret import Secret

VECTORS = Path(__file__).parents[1] / "vectors/keystore"
SLOTS = json.loads((VECTORS / "slots.json").read_text())
VAULT_KEY = VaultKey(bytes(range(32)))
PUBLIC = SitePublic.load(VECTORS / "site.pub")
DOCUMENTS = sorted(path.name for path in VECTORS.glob("*-record*"))


def slot_of(fields: dict[str, Any]) -> Slot:
    kdf = fields["kdf"]
    return Slot(
        **{
            **fields,
            "kind": SlotKind(fields["kind"]),
            "state": SlotState(fields["state"]),
            "kdf": Kdf(kdf["memory"], kdf["passes"], bytes.fromhex(kdf["salt"])),
            "public_key": bytes.fromhex(fields["public_key"]),
            "sealed": bytes.fromhex(fields["sealed"]),
        }
    )


def test_every_kind_and_state_of_slot_is_pinned() -> None:
    found = {slot_of(row["slot"]) for row in SLOTS}
    assert {slot.kind for slot in found} == set(SlotKind)
    assert {slot.state for slot in found} == set(SlotState)


@pytest.mark.parametrize(
    "row", SLOTS, ids=[f"{r['slot']['kind']} {r['slot']['state']}" for r in SLOTS]
)
def test_a_pinned_slot_opens_with_its_secret_and_no_other(row: dict[str, Any]) -> None:
    slot, secret = slot_of(row["slot"]), Secret(bytes.fromhex(row["secret"]))
    assert (slot.digest().hex(), digest_of((slot,)).hex()) == (row["digest"], row["digest_of"])
    if slot.kind is SlotKind.ADMIN:
        seed = VaultKey(secret.reveal())
        assert admin_public_key(seed) == slot.public_key
        assert slot.open_as_admin(seed) == VAULT_KEY
        with pytest.raises(WrongSecret):
            slot.open_as_admin(VAULT_KEY)
        return
    assert slot.open(secret) == VAULT_KEY
    with pytest.raises(WrongSecret):
        slot.open(Secret(secret.reveal() + b"x"))


@pytest.mark.parametrize(
    "row", [row for row in SLOTS if row["typed"]], ids=lambda r: r["typed"][:3]
)
def test_a_pinned_code_is_read_as_its_owner_has_it(row: dict[str, Any]) -> None:
    secret = Secret(bytes.fromhex(row["secret"]))
    if row["slot"]["kind"] == SlotKind.RECOVERY_CODE:
        assert recovery_code.read(row["typed"]) == secret
        assert recovery_code.written(secret) == row["typed"]
    else:
        made = app_password.read(row["typed"])
        assert (made.secret, made.written()) == (secret, row["typed"])
        assert row["slot"]["slot_id"].startswith(made.handle)


def test_a_pinned_private_key_unseals() -> None:
    pinned = json.loads((VECTORS / "vault.json").read_text())
    assert VAULT_KEY.commitment().hex() == pinned["commitment"]
    where = (pinned["account_id"], pinned["vault_id"], bytes.fromhex(pinned["key_id"]))
    der = VAULT_KEY.unseal(bytes.fromhex(pinned["sealed"]), *where)
    assert der.reveal().hex() == pinned["private_key"]
    public = PrivateKey.from_der(der).public
    assert (public.spki.hex(), public.key_id.hex()) == (pinned["public_key"], pinned["key_id"])


def pinned_record(name: str) -> AccountRecord | AdminRecord:
    document = (VECTORS / name).read_bytes()
    return PUBLIC.verify_admin(document) if "admin" in name else PUBLIC.verify(document).record


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_pinned_document_verifies_and_changes_with_no_byte(name: str) -> None:
    assert pinned_record(name).site_id == PUBLIC.site_id
    text = (VECTORS / name).read_text()
    with pytest.raises(BadDocument):
        PUBLIC.verify(text.replace("example.org", "example.com").encode())


def test_documents_of_the_first_format_have_the_defaults_of_what_came_later() -> None:
    record, plain = (
        pinned_record("account-record-first"),
        pinned_record("account-record-first-plain"),
    )
    assert isinstance(record, AccountRecord) and isinstance(plain, AccountRecord)
    assert (record.state, plain.state) == (State.ENCRYPTED, State.PLAIN)
    assert record.vault_commitment == VAULT_KEY.commitment()
    later = (record.closed, record.vault_key_since, record.admin_key, record.admin_refused)
    assert later == ((), 0, "", False)
    assert not (record.rekey_due or record.reencrypt or record.frozen or record.suspended)
    admin = pinned_record("admin-record-first")
    assert admin == AdminRecord(PUBLIC.site_id, 1, "allowed", None, None)


@pytest.mark.parametrize("name", ["account-record", "account-record-certificates", "admin-record"])
def test_documents_of_this_format_are_written_as_they_were(name: str) -> None:
    key, record = SiteKey(PUBLIC.site_id, (Secret(bytes(range(32))),)), pinned_record(name)
    if isinstance(record, AccountRecord):
        assert record.closed and record.frozen and record.suspended and record.admin_key
        own = (Kind.OPENPGP, (bytes(range(40)), b"\xff" * 7))
        expected = own if "certificates" in name else (Kind.MAIL_CRYPT, ())
        assert (record.kind, record.certificates) == expected
        document = key.sign(record).document
    else:
        assert record.key and record.previous
        document = key.sign_admin(record)
    assert document == (VECTORS / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("account-record-first", '"admin_policy":"none"', '"admin_policy":"forced"'),
        ("account-record-first", '"epoch":3', '"epoch":3,"later":1'),
        ("admin-record-first", '"public_key":""', '"public_key":"00"'),
    ],
    ids=["policy", "a field of a later program", "key"],
)
def test_what_no_program_up_to_this_one_wrote_is_refused_though_signed(
    name: str, old: str, new: str
) -> None:
    key = SiteKey(PUBLIC.site_id, (Secret(bytes(range(32))),))
    title, body = (VECTORS / name).read_text().split("\n")[:2]
    assert old in body
    document = key._document(title, json.loads(body.replace(old, new)))
    verify = PUBLIC.verify_admin if "admin-record" in name else PUBLIC.verify
    with pytest.raises(BadDocument, match="damaged"):
        verify(document)
