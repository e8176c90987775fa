"""Admin recovery: one key of the site, and which mail it opens at every moment."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from lmtp_atrest.crypto.records import AccountRecord, AdminRecord, BadDocument, SiteKey
from lmtp_atrest.crypto.slots import Slot, SlotKind, admin_public_key
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Alarm, AtRestError, Conflict, Damaged, WrongSecret, WrongState
from lmtp_atrest.keystore.schema import seen_site, slots, vaults
from lmtp_atrest.keystore.schema import site as site_table
from lmtp_atrest.keystore.store import StoreUnavailable
from lmtp_atrest.secret import Secret
from tests.sites import PASSWORD, CheapSite

ALICE, BOB = "alice@example.org", "bob@example.org"
ADMIN, NEWER = Secret(b"the administrator's password"), Secret(b"and the one after it")


@pytest.fixture
def alice(site: CheapSite) -> AccountRecord:
    """Alice's account, with a slot of the admin recovery key."""
    site.admin.set(ADMIN)
    site.add()
    return site.accounts.enable(ALICE, PASSWORD, admin=site.admin.record())


def now(site: CheapSite, name: str = ALICE) -> AccountRecord:
    record = site.accounts.record(name)
    assert record is not None
    return record


def own_key(site: CheapSite, secret: Secret = PASSWORD) -> Any:
    return site.accounts.open(now(site), secret).vault_key


def admin_opens(site: CheapSite, secret: Secret, closed: int | None = None) -> bool:
    record = now(site)
    seal = None if closed is None else record.closed[closed]
    try:
        vault_key = site.admin.open(record, secret, "test", seal)
    except (WrongSecret, WrongState):
        return False
    return bool(site.accounts.private_keys(record, vault_key, seal))


# ---- the key and its password


def test_another_password_keeps_the_key_and_nothing_opens_with_the_one_before(
    site: CheapSite, alice: AccountRecord
) -> None:
    before = site.admin.record()
    after = site.admin.change_password(ADMIN, NEWER)
    assert after.key and before.key and after.key.key_id == before.key.key_id
    assert now(site) == alice
    assert (admin_opens(site, ADMIN), admin_opens(site, NEWER)) == (False, True)
    assert site.vaults.ids_of("admin") == [after.key.vault.vault_id]


def test_another_key_takes_all_accounts_along_and_asks_each_for_a_rekey(
    site: CheapSite, alice: AccountRecord
) -> None:
    site.add(BOB, PASSWORD)
    record, left = site.admin.change_key(ADMIN, NEWER)
    assert left == 0 and record.previous is None and record.key
    assert (now(site).admin_key, now(site).rekey_due) == (record.key.key_id, True)
    assert not now(site, BOB).rekey_due
    assert (admin_opens(site, ADMIN), admin_opens(site, NEWER)) == (False, True)
    opened = site.accounts.open(now(site), PASSWORD)
    site.slots.settle(now(site), opened, PASSWORD, site.admin.record, verified=True)
    assert not now(site).rekey_due
    assert now(site).vault_commitment != alice.vault_commitment
    assert admin_opens(site, NEWER)


def test_another_key_with_the_same_password_is_a_change_too(
    site: CheapSite, alice: AccountRecord
) -> None:
    record, left = site.admin.change_key(ADMIN, ADMIN)
    assert left == 0 and record.key and record.key.key_id != alice.admin_key
    assert admin_opens(site, ADMIN)


def test_another_key_opens_closed_vaults_that_the_one_before_opened(
    site: CheapSite, alice: AccountRecord
) -> None:
    """With the password forgotten, the administrator may be all that opens such mail."""
    site.generations.reset(alice, Secret(b"new"), admin=site.admin.record())
    site.admin.change_key(ADMIN, NEWER)
    assert admin_opens(site, NEWER, closed=0)
    record = now(site)
    joined = site.generations.join(
        record,
        own_key(site, Secret(b"new")),
        record.closed[0],
        site.admin.open(record, NEWER, "test", record.closed[0]),
    )
    assert joined.key_ids[1:] == alice.key_ids


def test_another_key_reaches_the_closed_vaults_of_an_account_that_is_plain_again(
    site: CheapSite, alice: AccountRecord
) -> None:
    site.generations.become_plain(site.generations.leave(alice))
    site.admin.change_key(ADMIN, NEWER)
    assert admin_opens(site, NEWER, closed=0) and not admin_opens(site, ADMIN, closed=0)


def test_a_change_of_key_that_could_not_reach_an_account_is_gone_on_with(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = site.vaults.change

    def failing(*_arguments: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(site.vaults, "change", failing)
    record, left = site.admin.change_key(ADMIN, NEWER)
    monkeypatch.setattr(site.vaults, "change", change)
    assert left == 1 and record.previous
    status = site.admin.status()
    assert (status.accounts, status.by_key, status.by_previous) == (1, 0, 1)
    assert admin_opens(site, ADMIN) and not admin_opens(site, NEWER)
    for wrong in ((ADMIN, Secret(b"a third")), (Secret(b"a third"), NEWER)):
        with pytest.raises(WrongState, match="under way, with another"):
            site.admin.change_key(*wrong)
    with pytest.raises(WrongState, match="finish"):
        site.admin.change_password(ADMIN, Secret(b"a third"))
    record, left = site.admin.change_key(ADMIN, NEWER)
    assert (left, record.previous, now(site).rekey_due) == (0, None, True)
    assert admin_opens(site, NEWER) and not admin_opens(site, ADMIN)


def test_a_login_amid_a_change_of_key_rekeys_as_the_change_would_have(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.admin.set_policy("required")
    monkeypatch.setattr(site.admin, "_moved", lambda *_arguments: False)
    site.admin.change_key(ADMIN, NEWER)
    monkeypatch.undo()
    opened = site.accounts.open(now(site), PASSWORD)
    site.slots.settle(now(site), opened, PASSWORD, site.admin.record, verified=True)
    assert now(site).vault_commitment != alice.vault_commitment
    assert admin_opens(site, NEWER) and not admin_opens(site, ADMIN)


def test_a_choice_amid_a_change_of_key_rekeys_too(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.admin, "_moved", lambda *_arguments: False)
    site.admin.change_key(ADMIN, NEWER)
    monkeypatch.undo()
    site.slots.set_admin_slot(now(site), own_key(site), site.admin.record(), wanted=True)
    assert now(site).vault_commitment != alice.vault_commitment
    assert admin_opens(site, NEWER) and not admin_opens(site, ADMIN)


@pytest.mark.parametrize("change", ["key", "policy"])
def test_no_slot_is_made_for_an_admin_record_that_is_no_longer_true(
    site: CheapSite, alice: AccountRecord, change: str
) -> None:
    stale = site.admin.record()
    if change == "key":
        site.admin.change_key(ADMIN, NEWER)
    else:
        site.admin.set_policy("forbidden")
    site.add(BOB)
    with pytest.raises(Conflict, match="meanwhile"):
        site.accounts.enable(BOB, PASSWORD, admin=stale)
    with pytest.raises(Conflict, match="meanwhile"):
        site.generations.reset(now(site), Secret(b"new"), admin=stale)
    with pytest.raises(Conflict, match="meanwhile"):
        site.slots.set_admin_slot(now(site), own_key(site), stale, wanted=True)
    assert site.accounts.enable(BOB, PASSWORD, admin=site.admin.record()).state == "encrypted"


# ---- the policy


def test_where_it_is_forbidden_every_slot_goes_closed_vaults_included(
    site: CheapSite, alice: AccountRecord
) -> None:
    site.generations.reset(alice, Secret(b"new"), admin=site.admin.record())
    assert site.admin.withdraw() == ()
    site.admin.set_policy("forbidden")
    with pytest.raises(WrongState, match="forbids"):
        site.admin.open(now(site), ADMIN, "test")
    (changed,) = site.admin.withdraw()
    assert (changed.admin_key, changed.rekey_due) == ("", True)
    assert site.admin.withdraw() == ()
    site.admin.set_policy("allowed")
    assert not admin_opens(site, ADMIN) and not admin_opens(site, ADMIN, closed=0)
    with site.vaults.store.reading() as connection:
        assert connection.execute(select(slots).where(slots.c.kind == "admin")).all() == []
    site.accounts.open(now(site), PASSWORD, seal=now(site).closed[0])


def test_a_closed_vault_alone_loses_its_slot_too(site: CheapSite, alice: AccountRecord) -> None:
    fresh = site.generations.reset(alice, Secret(b"new"))
    assert not fresh.admin_key
    site.admin.set_policy("forbidden")
    (changed,) = site.admin.withdraw()
    assert not changed.rekey_due
    site.admin.set_policy("allowed")
    assert not admin_opens(site, ADMIN, closed=0)


@pytest.mark.parametrize("with_slot", [True, False])
def test_whoever_refuses_it_refuses_it_for_closed_vaults_too(
    site: CheapSite, alice: AccountRecord, with_slot: bool
) -> None:
    new, admin = Secret(b"new"), site.admin.record()
    fresh = site.generations.reset(alice, new, admin=admin if with_slot else None)
    after = site.slots.set_admin_slot(fresh, own_key(site, new), admin, wanted=False)
    assert after.admin_refused and not after.admin_key
    assert not admin_opens(site, ADMIN) and not admin_opens(site, ADMIN, closed=0)
    # A vault of their own gets none either, as long as the policy leaves the choice.
    assert not site.generations.reset(after, PASSWORD, admin=admin).admin_key


def test_required_reaches_those_who_refused_at_their_next_login(
    site: CheapSite, alice: AccountRecord
) -> None:
    site.slots.set_admin_slot(alice, own_key(site), site.admin.record(), wanted=False)
    site.admin.set_policy("required")
    opened = site.accounts.open(now(site), PASSWORD)
    after, _ = site.slots.settle(now(site), opened, PASSWORD, site.admin.record, verified=True)
    assert after.admin_key and admin_opens(site, ADMIN)
    for policy, wanted in (("required", False), ("forbidden", True)):
        admin = site.admin.set_policy(policy)
        assert site.admin.set_policy(policy) == admin
        with pytest.raises(WrongState, match="nothing to choose"):
            site.slots.set_admin_slot(now(site), own_key(site), admin, wanted=wanted)


def test_settling_fails_no_login(site: CheapSite, alice: AccountRecord) -> None:
    site.generations.freeze(alice)  # the account changed since its record was read
    opened = site.accounts.open(alice, PASSWORD)
    due = replace(alice, rekey_due=True)
    assert site.slots.settle(due, opened, PASSWORD, lambda: None, verified=True) == (
        due,
        opened.vault_key,
    )


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        (lambda site: site.admin.set(NEWER), "set already"),
        (lambda site: site.admin.open(now(site, BOB), ADMIN, "test"), "its owner alone"),
        (lambda site: site.admin.open(frozen(site), ADMIN, "test"), "frozen"),
        (lambda site: site.slots.set_admin_slot(
            now(site), own_key(site), AdminRecord(site.key.site_id, 1, "allowed"), wanted=True
        ), "no admin recovery password"),
    ],
    ids=["set twice", "no slot", "frozen", "no key"],
)  # fmt: skip
def test_what_does_not_apply_is_refused_and_leaves_no_trace(
    site: CheapSite, alice: AccountRecord, do: Callable[[CheapSite], object], complaint: str
) -> None:
    site.add(BOB, PASSWORD)
    before = len(list(site.audit.entries()))
    with pytest.raises(WrongState, match=complaint):
        do(site)
    assert len(list(site.audit.entries())) == before


def frozen(site: CheapSite) -> AccountRecord:
    return site.generations.freeze(now(site))


def test_before_a_password_is_set_there_is_nothing_to_use(site: CheapSite) -> None:
    for use in (site.admin.check, lambda secret: site.admin.change_key(secret, NEWER)):
        with pytest.raises(WrongState, match="no admin recovery password"):
            use(ADMIN)
    site.admin.set_policy("forbidden")
    with pytest.raises(WrongState, match="forbids"):
        site.admin.set(ADMIN)
    assert site.admin.status().policy == "forbidden"


# ---- the audit comes first


@pytest.mark.parametrize(
    "use",
    [
        lambda site: site.admin.open(now(site), ADMIN, "admin-export"),
        lambda site: site.admin.change_password(ADMIN, NEWER),
        lambda site: site.admin.change_key(ADMIN, NEWER),
        lambda site: site.admin.set_policy("forbidden"),
    ],
    ids=["open", "change password", "change key", "policy"],
)
def test_what_cannot_be_written_into_the_audit_is_not_done(
    site: CheapSite,
    alice: AccountRecord,
    use: Callable[[CheapSite], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = site.admin.record()

    def full(*_arguments: object, **_more: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(site.audit, "append", full)
    with pytest.raises(StoreUnavailable):
        use(site)
    assert (site.admin.record(), now(site)) == (before, alice)
    monkeypatch.undo()
    use(site)
    assert len(list(site.audit.entries())) == 2


# ---- what somebody who can write to the stores may try


def write(site: CheapSite, statement: Any, store: str = "vaults") -> None:
    with getattr(site, store).store.transaction() as connection:
        connection.execute(statement)


def swap_key(site: CheapSite) -> None:
    """Our own key pair under a signature of our own making."""
    stranger = SiteKey(site.key.site_id, (Secret(b"m" * 32),))
    document = stranger.sign_admin(site.admin.record())
    write(site, update(site_table).values(document=document), "records")


def rename_key(site: CheapSite) -> None:
    """One byte of the public key, under the signature that stood there."""
    record = site.admin.record()
    assert record.key
    old = record.key.public_key.hex().encode()
    document = site.records.admin_document() or b""
    changed = document.replace(old, old[:-1] + (b"0" if old[-1:] != b"0" else b"1"))
    write(site, update(site_table).values(document=changed), "records")


def roll_back(site: CheapSite) -> None:
    old = site.records.admin_document()
    site.admin.set_policy("required")
    write(site, update(site_table).values(epoch=1, document=old), "records")


def replay_epoch(site: CheapSite) -> None:
    """Another record of the same epoch, as after a rollback of both epoch and pin."""
    record = replace(site.admin.record(), policy="forbidden")
    write(site, update(site_table).values(document=site.key.sign_admin(record)), "records")


def forge_pin(site: CheapSite) -> None:
    write(site, update(seen_site).values(document=b"junk"), "pins")


@pytest.mark.parametrize(
    "attack",
    [
        swap_key,
        rename_key,
        roll_back,
        replay_epoch,
        forge_pin,
        lambda site: write(site, delete(site_table), "records"),
    ],
    ids=["swapped", "edited", "rolled back", "forked", "pin", "deleted"],
)
def test_an_admin_record_that_is_not_the_newest_of_ours_is_an_alarm(
    site: CheapSite, alice: AccountRecord, attack: Callable[[CheapSite], object]
) -> None:
    attack(site)
    for use in (
        site.admin.record,
        lambda: site.admin.open(alice, ADMIN, "test"),
        lambda: site.admin.set_policy("allowed"),
        lambda: site.admin.change_key(ADMIN, NEWER),
    ):
        with pytest.raises(Alarm):
            use()
    assert now(site) == alice
    site.accounts.open(alice, PASSWORD)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (update(slots).where(slots.c.account_id == "admin").values(kdf_passes=3), Damaged),
        (update(slots).where(slots.c.account_id == "admin").values(kdf_memory=1 << 50), Damaged),
        (delete(slots).where(slots.c.account_id == "admin"), Alarm),
        (update(vaults).where(vaults.c.account_id == "admin").values(vault_id="0" * 32), Alarm),
    ],
    ids=["cheaper", "absurd", "deleted", "moved"],
)
def test_an_admin_vault_that_was_written_to_opens_nothing(
    site: CheapSite, alice: AccountRecord, change: Any, error: type[AtRestError]
) -> None:
    with site.vaults.store.transaction() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        connection.execute(delete(slots) if error is Alarm and "vaults" in str(change) else change)
        connection.execute(change)
    with pytest.raises(error):
        site.admin.open(alice, ADMIN, "test")
    with pytest.raises(error):
        site.admin.change_password(ADMIN, NEWER)


def test_an_admin_vault_exchanged_for_one_of_the_attackers_making_is_an_alarm(
    site: CheapSite, alice: AccountRecord
) -> None:
    """The attacker knows a password of theirs, and the slot fits its own digest."""
    record = site.admin.record()
    assert record.key
    vault_id = record.key.vault.vault_id
    forged = site.admin._slot(VaultKey.generate(), vault_id, Secret(b"the attacker's"))
    vault = site.vaults.get(vault_id)
    assert vault
    site.vaults.put(replace(vault, slots=(forged,)))
    for secret in (ADMIN, Secret(b"the attacker's")):
        with pytest.raises(Alarm, match="not what was signed"):
            site.admin.open(alice, secret, "test")


def test_a_key_that_does_not_fit_its_own_vault_is_an_alarm(
    site: CheapSite, alice: AccountRecord
) -> None:
    """As if the attacker could sign, and had mail sealed to a key of theirs from now on."""
    record = site.admin.record()
    assert record.key
    theirs = replace(record.key, public_key=admin_public_key(VaultKey.generate()))
    site.admin._commit(record.next(key=theirs))
    with pytest.raises(Alarm, match="not that of its record"):
        site.admin.check(ADMIN)


def test_an_admin_slot_that_does_not_open_is_never_used(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "open", lambda _slot, _secret: VaultKey.generate())
    with pytest.raises(Alarm, match="own password"):
        site.admin.set(ADMIN)
    assert site.admin.record().key is None


def test_a_record_signed_anew_by_another_site_key_says_the_same(
    site: CheapSite, alice: AccountRecord
) -> None:
    before = site.admin.record()
    site.key = site.key.with_new_key()
    site.public = site.key.public
    site.restart()
    site.records.put_admin(before.epoch, site.key.sign_admin(before))
    assert site.admin.record() == before
    assert site.pins.admin() == (before.epoch, site.records.admin_document())
    assert admin_opens(site, ADMIN)


def test_a_record_that_changes_between_two_reads_is_no_alarm(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = site.records.admin_document

    def read_then_change() -> bytes | None:
        monkeypatch.undo()
        found = read()
        site.admin.set_policy("required")
        return found

    monkeypatch.setattr(site.records, "admin_document", read_then_change)
    assert site.admin.record().policy == "required"


def test_of_two_changes_of_the_admin_record_one_wins(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = site.admin.record()
    site.admin.change_password(ADMIN, NEWER)
    monkeypatch.setattr(site.admin, "record", lambda: stale)
    with pytest.raises(Conflict, match="somebody else"):
        site.admin.set_policy("forbidden")


def test_a_document_of_a_strangers_key_never_counts(site: CheapSite) -> None:
    stranger = SiteKey.generate()
    document = stranger.sign_admin(AdminRecord(site.key.site_id, 1, "allowed"))
    with pytest.raises(BadDocument):
        site.public.verify_admin(document)


# ---- what a crash leaves


def test_the_vault_of_a_spent_password_does_not_outlive_the_next_start(
    site: CheapSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the seed of the key that still counts."""

    def failing(_ids: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(site.vaults, "drop", failing)
    site.admin.change_password(ADMIN, NEWER)
    assert len(site.vaults.ids_of("admin")) == 2
    monkeypatch.undo()
    site.restart()
    assert len(site.vaults.ids_of("admin")) == 1
    assert admin_opens(site, NEWER)


def test_an_old_copy_of_the_records_takes_no_admin_vault_away(
    site: CheapSite, alice: AccountRecord
) -> None:
    site.copy("records")
    site.admin.change_password(ADMIN, NEWER)
    named = site.vaults.ids_of("admin")
    site.restore("records")
    with pytest.raises(Alarm):
        site.admin.repair()
    assert site.vaults.ids_of("admin") == named


def test_an_account_with_an_admin_slot_of_no_kind_is_told(
    site: CheapSite, alice: AccountRecord
) -> None:
    vault = site.vaults.get(alice.vault_id)
    assert vault
    bare = site.accounts.change(alice, vault.without(SlotKind.ADMIN))
    with pytest.raises(WrongState, match="no slot"):
        site.admin._vault_key(bare, site.admin._opened(site.admin.record(), ADMIN)[1])
