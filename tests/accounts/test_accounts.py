import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, event, text, update

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto import slots as slots_module
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import AccountRecord, SignedRecord, SiteKey, State
from lmtp_atrest.crypto.slots import Kdf, Slot, digest_of
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, Conflict, Damaged, NotFound, WrongSecret, WrongState
from lmtp_atrest.keystore.schema import accounts, names, private_keys, slots
from lmtp_atrest.keystore.store import StoreUnavailable
from lmtp_atrest.secret import Secret
from tests.sites import PASSWORD, CheapSite

ALICE, BOB = "alice@example.org", "bob@example.org"
MESSAGE = b"Subject: canary\n\nhello\n"


def opens(
    site: CheapSite, record: AccountRecord, sealed: bytes, secret: Secret = PASSWORD
) -> bool:
    """Whether the password leads from the stores to the plaintext of this message."""
    current = site.accounts.record(record.names[0])
    assert current is not None
    vault_key = site.accounts.open(current, PASSWORD).vault_key
    keys = {key.public.key_id: key for key in site.accounts.private_keys(current, vault_key)}

    def unwrap(header: dcrypt.Header) -> dcrypt.MessageKey:
        return dcrypt.unwrap(header, keys[header.key_id])

    return dcrypt.open_bytes(sealed, unwrap) == MESSAGE


def sealed_to(record: AccountRecord) -> bytes:
    return dcrypt.seal(PublicKey.from_der(record.public_key), MESSAGE)


def test_an_account_starts_plain_and_signed(site: CheapSite) -> None:
    record = site.add()
    assert (record.state, record.epoch, record.public_key) == (State.PLAIN, 1, b"")
    signed = site.records.by_name(ALICE)
    assert signed is not None
    assert site.public.verify(signed.document).record == record


def test_mail_sealed_after_enable_opens_with_the_password_only(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    assert record.state is State.ENCRYPTED
    sealed = sealed_to(record)
    assert opens(site, record, sealed)
    with pytest.raises(WrongSecret):
        site.accounts.open(record, Secret(b"guess"))
    site.restart()
    assert opens(site, record, sealed)


def test_enable_twice_or_of_nobody_is_refused(site: CheapSite) -> None:
    site.add(password=PASSWORD)
    with pytest.raises(WrongState, match="encrypted already"):
        site.accounts.enable(ALICE, PASSWORD)
    with pytest.raises(NotFound):
        site.accounts.enable(BOB, PASSWORD)


def test_a_rekey_needs_one_secret_and_leaves_old_mail_readable(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    before = sealed_to(record)
    old_key = site.accounts.open(record, PASSWORD).vault_key
    after = site.generations.rekey(record, old_key)[0]
    assert after.key_ids[1:] == record.key_ids
    assert after.vault_commitment != record.vault_commitment
    assert opens(site, after, before)
    assert opens(site, after, sealed_to(after))
    with pytest.raises(Damaged):
        site.accounts.private_keys(after, old_key)
    with pytest.raises(Conflict):
        site.generations.rekey(record, old_key)


def test_names_are_changed_and_given_free(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    site.accounts.alias_add(ALICE, "info@example.org")
    assert site.accounts.record("info@example.org") == site.accounts.record(ALICE)
    with pytest.raises(Conflict):
        site.accounts.add(["info@example.org"], "/h", "/h/Maildir")
    site.accounts.rename(ALICE, "alicia@example.org")
    assert site.accounts.record(ALICE) is None
    assert opens(site, replace(record, names=("alicia@example.org",)), sealed_to(record))
    with pytest.raises(WrongState):
        site.accounts.alias_remove("info@example.org", "alicia@example.org")
    with pytest.raises(NotFound):
        site.accounts.alias_remove("info@example.org", ALICE)
    site.accounts.alias_remove("alicia@example.org", "info@example.org")
    assert site.accounts.record("info@example.org") is None


def test_a_removed_accounts_name_gets_a_new_account_without_the_old_vault(site: CheapSite) -> None:
    old = site.add(password=PASSWORD)
    site.accounts.remove(ALICE)
    assert site.accounts.record(ALICE) is None
    assert site.accounts.record_by_id(old.account_id) is None
    assert site.accounts.all() == ()
    assert site.vaults.get(old.vault_id) is not None  # kept, closed
    new = site.add(password=Secret(b"another"))
    assert (new.account_id, new.vault_id) != (old.account_id, old.vault_id)
    with pytest.raises(WrongSecret):
        site.accounts.open(new, PASSWORD)


def test_a_closed_vault_is_forgotten_after_30_days(site: CheapSite) -> None:
    old = site.add(password=PASSWORD)
    site.accounts.remove(ALICE)
    site.accounts.repair()
    assert site.vaults.get(old.vault_id) is not None
    month = 31 * 86400
    clock = site.accounts._now
    site.accounts._now = lambda: clock() + month
    site.accounts.repair()
    assert site.vaults.get(old.vault_id) is None
    with site.vaults.store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM slots")).scalar() == 0


def test_show_tells_the_slots_and_all_tells_the_accounts(site: CheapSite) -> None:
    site.add(BOB)
    site.add(password=PASSWORD)
    view = site.accounts.show(ALICE)
    assert [(slot.kind, slot.state) for slot in view.slots] == [("password", "active")]
    assert site.accounts.show(BOB).slots == ()
    assert [record.names[0] for record in site.accounts.all()] == [ALICE, BOB]


def test_of_two_changes_at_once_one_wins(site: CheapSite) -> None:
    site.add()
    results: list[object] = []

    def enable(secret: bytes) -> None:
        try:
            results.append(site.accounts.enable(ALICE, Secret(secret)))
        except (Conflict, WrongState) as error:
            results.append(error)

    threads = [threading.Thread(target=enable, args=(b"%d" % i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, AccountRecord) for result in results) == 1


class Crash(BaseException):
    """The process ends here."""


STEPS = ("records.put", "pins.remember", "vaults.finished")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", ["enable", "rekey", "rename"])
def test_a_crash_between_the_stores_is_completed_at_the_next_start(
    site: CheapSite, step: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = site.add(password=None if change == "enable" else PASSWORD)
    before = b"" if change == "enable" else sealed_to(record)
    vault_key = None if change == "enable" else site.accounts.open(record, PASSWORD).vault_key

    def crash(*_args: object) -> None:
        raise Crash

    store, method = step.split(".")
    monkeypatch.setattr(getattr(site, store), method, crash)
    with pytest.raises(Crash):
        if change == "enable":
            site.accounts.enable(ALICE, PASSWORD)
        elif change == "rename":
            site.accounts.rename(ALICE, BOB)
        else:
            assert isinstance(vault_key, VaultKey)
            site.generations.rekey(record, vault_key)
    monkeypatch.undo()
    site.restart()
    name = BOB if change == "rename" else ALICE
    after = site.accounts.record(name)
    assert after is not None
    assert after.epoch == record.epoch + 1
    assert opens(site, after, sealed_to(after))
    assert not before or opens(site, after, before)
    assert list(site.vaults.unfinished()) == []


def test_a_change_that_delivery_could_not_see_is_completed_by_the_next_one(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add()

    def locked(_signed: SignedRecord) -> None:
        raise StoreUnavailable("locked")

    monkeypatch.setattr(site.records, "put", locked)
    with pytest.raises(StoreUnavailable):
        site.accounts.enable(ALICE, PASSWORD)
    assert site.records.by_name(ALICE).record.state is State.PLAIN  # type: ignore[union-attr]
    monkeypatch.undo()
    site.accounts.alias_add(ALICE, BOB)
    after = site.accounts.record(BOB)
    assert after is not None
    assert after.state is State.ENCRYPTED
    assert opens(site, after, sealed_to(after))


def test_a_change_whose_commit_seemed_to_fail_is_completed_by_the_next_one(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add()
    change = site.vaults.change

    def durable_but_reported_as_failed(*arguments: Any) -> None:
        change(*arguments)
        raise StoreUnavailable("disk I/O error")

    monkeypatch.setattr(site.vaults, "change", durable_but_reported_as_failed)
    with pytest.raises(StoreUnavailable):
        site.accounts.alias_add(ALICE, BOB)
    monkeypatch.undo()
    assert site.accounts.alias_add(ALICE, "c@example.org").names == (ALICE, BOB, "c@example.org")


@pytest.mark.parametrize("step", STEPS)
def test_a_vault_is_closed_although_its_removal_was_cut_short(
    site: CheapSite, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = site.add(password=PASSWORD)

    def crash(*_args: object) -> None:
        raise Crash

    store, method = step.split(".")
    monkeypatch.setattr(getattr(site, store), method, crash)
    with pytest.raises(Crash):
        site.accounts.remove(ALICE)
    monkeypatch.undo()
    site.restart()
    site.vaults.purge(2**62)
    assert site.vaults.get(old.vault_id) is None


def test_one_unfinished_change_that_does_not_fit_leaves_the_others_alone(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    forged = SiteKey(site.key.site_id, (Secret(b"m" * 32),)).sign(record.next(names=(BOB,)))
    site.vaults.change(forged)
    site.restart()
    assert site.accounts.record(ALICE) == record
    assert site.accounts.record(BOB) is None


# ---- reading while somebody changes


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [("alias_add", ALICE, (ALICE, BOB)), ("rename", BOB, (BOB,)), ("rename", ALICE, None)],
    ids=["changes", "comes", "goes"],
)
def test_a_name_that_changes_between_two_reads_is_no_alarm(
    site: CheapSite,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    name: str,
    expected: tuple[str, ...] | None,
) -> None:
    site.add()
    read = site.records.by_name

    def read_then_change(name: str) -> SignedRecord | None:
        monkeypatch.undo()
        found = read(name)
        getattr(site.accounts, change)(ALICE, BOB)
        return found

    monkeypatch.setattr(site.records, "by_name", read_then_change)
    found = site.accounts.record(name)
    assert (found.names if found else None) == expected


def test_pins_that_are_older_than_the_records_are_written_anew(site: CheapSite) -> None:
    """As after a crash between the two, or with pins from a backup."""
    site.add()
    site.copy("pins")
    renamed = site.accounts.rename(ALICE, BOB)
    site.restore("pins")
    assert site.accounts.record(ALICE) is None
    site.restore("pins")
    assert site.accounts.record(BOB) == renamed
    assert site.pins.epoch(renamed.account_id) == renamed.epoch


def test_refusing_nobody_is_the_same_work_as_refusing_a_wrong_secret(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = site.add(password=PASSWORD)
    work: list[str] = []

    def noted(*arguments: Any) -> None:
        work.append(str(arguments[2]))

    def derive(self: Kdf, secret: Secret) -> Secret:
        work.append(f"{self.memory} {self.passes}")
        return Secret(b"d" * 32)

    key_pair = slots_module._key_pair

    def noted_key_pair(derived: Secret, slot: Slot) -> Any:
        work.append("key pair")
        return key_pair(derived, slot)

    monkeypatch.setattr(Kdf, "derive", derive)
    monkeypatch.setattr(slots_module, "_key_pair", noted_key_pair)
    event.listen(site.vaults.store._engine, "before_cursor_execute", noted)
    with pytest.raises(WrongSecret):
        site.accounts.open(record, Secret(b"guess"))
    known, work[:] = [*work], []
    with pytest.raises(WrongSecret):
        site.accounts.dummy_open(Secret(b"guess"))
    assert work == known
    assert "key pair" in work


# ---- what somebody who can write to the stores may try


def edit(site: CheapSite, statement: object, store: str = "records") -> None:
    with getattr(site, store).store.transaction() as connection:
        connection.execute(statement)


def test_a_record_restored_from_before_enable_is_an_alarm_not_plain(site: CheapSite) -> None:
    site.add()
    site.copy("records")
    site.accounts.enable(ALICE, PASSWORD)
    site.restore("records")
    with pytest.raises(Alarm, match="rollback"):
        site.accounts.record(ALICE)
    with pytest.raises(Alarm, match="rollback"):
        site.accounts.record_by_id(site.records.by_name(ALICE).record.account_id)  # type: ignore[union-attr]


def test_a_deleted_record_is_an_alarm_not_unknown(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    edit(site, delete(names))
    with pytest.raises(Alarm, match="no record for a name"):
        site.accounts.record(ALICE)
    edit(site, delete(accounts))
    with pytest.raises(Alarm):
        site.accounts.record(ALICE)
    with pytest.raises(Alarm, match="has seen"):
        site.accounts.record_by_id(record.account_id)
    assert site.accounts.record("nobody@example.org") is None
    assert site.accounts.record_by_id("0" * 32) is None


def test_a_rollback_that_only_takes_a_name_away_is_an_alarm(site: CheapSite) -> None:
    site.add(password=PASSWORD)
    site.copy("records")
    site.accounts.alias_add(ALICE, BOB)
    site.restore("records")
    with pytest.raises(Alarm, match="rollback"):
        site.accounts.record(BOB)


def test_a_name_pointed_at_another_account_is_an_alarm(site: CheapSite) -> None:
    site.add(password=PASSWORD)
    mallory = site.add("mallory@example.org", PASSWORD)
    edit(site, update(names).where(names.c.name == ALICE).values(account_id=mallory.account_id))
    with pytest.raises(Alarm, match="whose record differs"):
        site.accounts.record(ALICE)


def test_a_record_put_in_another_row_or_signed_by_a_stranger_is_an_alarm(site: CheapSite) -> None:
    alice = site.add(password=PASSWORD)
    bob = site.add(BOB, PASSWORD)
    theirs = site.key.sign(bob).document
    row = update(accounts).where(accounts.c.account_id == alice.account_id)
    edit(site, row.values(document=theirs))
    with pytest.raises(Alarm, match="another account"):
        site.accounts.record(ALICE)
    forged = SiteKey(site.key.site_id, (Secret(b"m" * 32),)).sign(alice).document
    edit(site, row.values(document=forged))
    with pytest.raises(Alarm, match="not of this site"):
        site.accounts.record(ALICE)


def test_a_slot_that_is_edited_moved_or_rolled_back_opens_nothing(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    site.copy("vaults")
    after = site.generations.rekey(record, site.accounts.open(record, PASSWORD).vault_key)[0]
    site.restore("vaults")
    with pytest.raises(Alarm, match="slots"):
        site.accounts.open(after, PASSWORD)
    edit(site, update(slots).values(kdf_passes=3), "vaults")
    with pytest.raises(Damaged, match="digest"):
        site.accounts.open(after, PASSWORD)
    edit(site, delete(slots), "vaults")
    with pytest.raises(Alarm, match="slots"):
        site.accounts.open(after, PASSWORD)
    edit(site, delete(private_keys), "vaults")
    edit(site, text("DELETE FROM vaults"), "vaults")
    with pytest.raises(Alarm, match="missing"):
        site.accounts.open(after, PASSWORD)


def test_a_private_key_exchanged_in_the_store_never_leaves(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    vault_key = site.accounts.open(record, PASSWORD).vault_key
    vault = site.vaults.get(record.vault_id)
    assert vault is not None
    edit(site, update(private_keys).values(sealed=vault.keys[0].sealed[::-1]), "vaults")
    with pytest.raises(Damaged):
        site.accounts.private_keys(record, vault_key)
    edit(site, delete(private_keys), "vaults")
    with pytest.raises(Alarm, match="not those of its record"):
        site.accounts.private_keys(record, vault_key)


def test_a_vault_key_of_somebody_elses_making_is_an_alarm(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    vault = site.vaults.get(record.vault_id)
    assert vault is not None
    forged = tuple(slot.resealed(VaultKey.generate()) for slot in vault.slots)
    # As if the attacker also had the signing key for the slots' digest, but not the vault key.
    resigned = record.next(slots_digest=digest_of(forged))
    site.accounts.commit(resigned, replace(vault, slots=forged))
    with pytest.raises(Alarm, match="another vault"):
        site.accounts.open(resigned, PASSWORD)


def test_a_public_key_that_the_vault_does_not_hold_is_an_alarm(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    other = site.add(BOB, PASSWORD)
    resigned = site.accounts.commit(record.next(public_key=other.public_key))
    with pytest.raises(Alarm, match="does not hold"):
        site.accounts.private_keys(resigned, site.accounts.open(resigned, PASSWORD).vault_key)


def test_nothing_of_a_secret_stands_in_the_stores(site: CheapSite) -> None:
    record = site.add(password=PASSWORD)
    vault_key = site.accounts.open(record, PASSWORD).vault_key
    private = site.accounts.private_keys(record, vault_key)[0].der().reveal()
    stored = b"".join(p.read_bytes() for p in site.root.iterdir() if p.is_file())
    assert record.public_key in stored or record.public_key.hex().encode() in stored
    for secret in (PASSWORD.reveal(), vault_key.reveal(), private[30:60]):
        assert secret not in stored
        assert secret.hex().encode() not in stored
