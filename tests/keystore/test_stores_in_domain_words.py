from dataclasses import replace

import pytest
from sqlalchemy import text, update

from lmtp_atrest.crypto.records import AccountRecord, AdminRecord, State
from lmtp_atrest.crypto.slots import Kdf, Slot, SlotKind, digest_of, make_slot
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, Conflict, Damaged, WrongSecret
from lmtp_atrest.keystore import vaults as vaults_module
from lmtp_atrest.keystore.schema import accounts, slots
from lmtp_atrest.secret import Secret
from tests.sites import PASSWORD, CheapSite

ALICE, BOB = "alice@example.org", "bob@example.org"


def test_a_record_follows_the_stored_one_or_is_a_conflict(site: CheapSite) -> None:
    record = site.add()
    for epoch in (3, 9):
        with pytest.raises(Conflict, match="not"):
            site.records.put(site.key.sign(replace(record, epoch=epoch)))
    second = site.key.sign(record.next())
    site.records.put(second)
    site.records.put(second)  # the same again changes nothing
    assert site.records.by_name(ALICE) == second
    site.records.replace(site.key.sign(replace(record, epoch=9)))
    assert site.records.by_id(record.account_id).record.epoch == 9  # type: ignore[union-attr]


def test_a_name_has_one_account_whoever_asks(site: CheapSite) -> None:
    alice, bob = site.add(), site.add(BOB)
    with pytest.raises(Conflict, match="another account"):
        site.records.put(site.key.sign(alice.next(names=(ALICE, BOB))))
    assert site.records.by_name(BOB).record == bob  # type: ignore[union-attr]
    assert site.records.by_name(ALICE).record == alice  # type: ignore[union-attr]


def test_all_records_are_walked_page_by_page(site: CheapSite) -> None:
    made = [site.key.sign(AccountRecord(
        site_id=site.key.site_id, account_id=f"{number:032x}", epoch=1, created=1,
        names=(f"u{number}@example.org",), home="/h", maildir="/h/m", state=State.PLAIN,
    )) for number in range(3)]  # fmt: skip
    for signed in made:
        site.records.put(signed)
    assert list(site.records.all()) == made


def test_a_row_at_another_epoch_than_its_record_is_an_alarm(site: CheapSite) -> None:
    site.add()
    with site.records.store.transaction() as connection:
        connection.execute(update(accounts).values(epoch=7))
    with pytest.raises(Alarm, match="another account or epoch"):
        list(site.records.all())


def test_the_admin_record_is_compared_and_set(site: CheapSite) -> None:
    assert site.records.admin() is None
    for epoch, policy in ((1, "allowed"), (2, "forbidden"), (2, "forbidden")):
        document = site.key.sign_admin(AdminRecord(site.key.site_id, epoch, policy))
        site.records.put_admin(epoch, document)
    assert site.records.admin().policy == "forbidden"  # type: ignore[union-attr]
    for epoch in (1, 4):
        document = site.key.sign_admin(AdminRecord(site.key.site_id, epoch, "allowed"))
        with pytest.raises(Conflict):
            site.records.put_admin(epoch, document)


def test_pins_only_grow(site: CheapSite) -> None:
    record = site.add()
    newer, older = site.key.sign(record.next(names=(BOB,))), site.key.sign(record)
    site.pins.remember(newer)
    site.pins.remember(older)
    assert site.pins.document(record.account_id) == newer.document
    assert site.pins.account_named(BOB) == record.account_id
    assert site.pins.account_named(ALICE) is None
    assert site.pins.epoch(record.account_id) == newer.record.epoch
    for epoch in (2, 1):
        site.pins.remember_admin(epoch, b"document %d" % epoch)
    assert site.pins.admin() == (2, b"document 2")
    site.pins.forget(record.account_id)
    assert site.pins.documents() == []


def test_a_slot_of_an_unknown_kind_is_damaged(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    with site.vaults.store.transaction() as connection:
        connection.execute(update(slots).values(kind="magic"))
    with pytest.raises(Damaged, match="not a slot"):
        site.vaults.get(record.vault_id)


def test_what_does_not_read_back_as_it_was_written_is_not_committed(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = site.add()
    monkeypatch.setattr(vaults_module, "_read", lambda _connection, _vault_id: None)
    with pytest.raises(Damaged, match="read back"):
        site.accounts.enable(ALICE, PASSWORD)
    monkeypatch.undo()
    assert site.accounts.record(ALICE) == record
    with site.vaults.store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM slots")).scalar() == 0
    assert site.accounts.enable(ALICE, PASSWORD).state is State.ENCRYPTED


def test_a_new_slot_that_does_not_open_is_never_used(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = site.add()
    monkeypatch.setattr(Slot, "open", lambda _slot, _secret: VaultKey.generate())
    with pytest.raises(Alarm, match="own secret"):
        site.accounts.enable(ALICE, PASSWORD)
    monkeypatch.undo()
    assert site.accounts.record(ALICE) == record


def test_a_password_is_only_tried_at_password_slots(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    vault_key, code = site.accounts.open(record, PASSWORD).vault_key, Secret(b"a generated secret")
    vault = site.vaults.get(record.vault_id)
    assert vault is not None
    other = make_slot(
        code,
        vault_key,
        account_id=record.account_id,
        vault_id=record.vault_id,
        kind=SlotKind.RECOVERY_CODE,
        kdf=Kdf.for_generated_secret(),
        created=1,
    )
    both = (other, *vault.slots)
    after = site.accounts.commit(
        record.next(slots_digest=digest_of(both)), replace(vault, slots=both)
    )
    assert site.accounts.open(after, PASSWORD).vault_key == vault_key
    with pytest.raises(WrongSecret):
        site.accounts.open(after, code)
    # A rekey takes the other slot along without knowing its secret.
    again = site.generations.rekey(after, vault_key)[0]
    resealed = site.vaults.get(again.vault_id)
    assert resealed is not None
    fresh = site.accounts.open(again, PASSWORD).vault_key
    assert fresh != vault_key
    assert [s.open(code) == fresh for s in resealed.slots if s.kind is other.kind] == [True]
