"""Passwords, codes and app passwords, and the generations of keys behind them: what each change
leaves open, and what it refuses."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, update

from lmtp_atrest.accounts import generations as generations_module
from lmtp_atrest.accounts import slotchanges
from lmtp_atrest.crypto import app_password, recovery_code
from lmtp_atrest.crypto.records import AccountRecord, State
from lmtp_atrest.crypto.slots import (
    MEMORY_FLOOR,
    PASSES_FLOOR,
    Kdf,
    SlotKind,
    SlotState,
    digest_of,
    make_slot,
)
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import (
    Alarm,
    AtRestError,
    BadCode,
    Conflict,
    Damaged,
    NotFound,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.keystore.schema import private_keys, slots
from lmtp_atrest.keystore.store import StoreUnavailable
from lmtp_atrest.secret import Secret
from tests.accounts.faults import CopiedSite
from tests.sites import CHEAP, PASSWORD, CheapSite

ALICE, BOB = "alice@example.org", "bob@example.org"
CODE, NEW = recovery_code.generate(), Secret(b"a new password")


@pytest.fixture
def alice(site: CopiedSite) -> AccountRecord:
    """Alice's account, with a password and a recovery code."""
    site.add()
    return site.accounts.enable(ALICE, PASSWORD, CODE)


def now(site: CheapSite, name: str = ALICE) -> AccountRecord:
    record = site.accounts.record(name)
    assert record is not None
    return record


def opens(site: CheapSite, secret: Secret, kind: SlotKind = SlotKind.PASSWORD) -> bool:
    try:
        opened = site.accounts.open(now(site), secret, kind)
    except WrongSecret:
        return False
    return bool(site.accounts.private_keys(now(site), opened.vault_key))


def key_of(site: CheapSite, secret: Secret = PASSWORD) -> VaultKey:
    return site.accounts.open(now(site), secret).vault_key


def settle(site: CheapSite, secret: Secret, *, verified: bool = True) -> AccountRecord:
    opened = site.accounts.open(now(site), secret)
    return site.slots.settle(now(site), opened, secret, site.admin.record, verified=verified)[0]


# ---- passwords


@pytest.mark.parametrize("verified", [True, False])
def test_a_new_password_takes_over_once_the_site_has_accepted_it(
    site: CopiedSite, alice: AccountRecord, verified: bool
) -> None:
    site.slots.begin_password(alice, key_of(site), NEW)
    assert opens(site, PASSWORD) and opens(site, NEW)
    settle(site, PASSWORD)
    settle(site, NEW, verified=verified)
    assert (opens(site, PASSWORD), opens(site, NEW)) == (not verified, True)
    assert opens(site, CODE, SlotKind.RECOVERY_CODE)


def test_a_password_change_begun_twice_or_given_up_leaves_the_old_password(
    site: CopiedSite, alice: AccountRecord
) -> None:
    first = site.slots.begin_password(alice, key_of(site), Secret(b"a slip"))
    second = site.slots.begin_password(first, key_of(site), NEW)
    assert not opens(site, Secret(b"a slip")) and opens(site, NEW)
    site.slots.abort_password(second)
    assert opens(site, PASSWORD) and not opens(site, NEW)


def test_argon2id_rises_with_the_configuration_and_never_sinks(
    site: CopiedSite, alice: AccountRecord
) -> None:
    site.accounts.settings = replace(CHEAP, argon2_memory=2 * MEMORY_FLOOR)
    risen = settle(site, PASSWORD)
    kdf = site.accounts.open(risen, PASSWORD).slot.kdf
    assert (kdf.memory, kdf.passes) == (2 * MEMORY_FLOOR, PASSES_FLOOR)
    site.accounts.settings = CHEAP
    assert settle(site, PASSWORD) == risen
    site.accounts.settings = replace(CHEAP, argon2_memory=3 * MEMORY_FLOOR)
    pending = site.slots.begin_password(risen, key_of(site), NEW)
    site.accounts.settings = replace(CHEAP, argon2_memory=4 * MEMORY_FLOOR)
    assert settle(site, NEW, verified=False).epoch == pending.epoch + 1
    two = site.accounts.vault(now(site)).of_kind(SlotKind.PASSWORD)
    assert {slot.state: slot.kdf.memory // MEMORY_FLOOR for slot in two} == {
        SlotState.ACTIVE: 2,
        SlotState.PENDING: 4,
    }
    settle(site, NEW)
    (only,) = site.accounts.vault(now(site)).of_kind(SlotKind.PASSWORD)
    assert (only.state, only.kdf.memory) == (SlotState.ACTIVE, 4 * MEMORY_FLOOR)


# ---- recovery codes


@pytest.mark.parametrize("compromised", [True, False])
def test_a_recovery_code_opens_once(
    site: CopiedSite, alice: AccountRecord, compromised: bool
) -> None:
    opened = site.accounts.open(alice, CODE, SlotKind.RECOVERY_CODE)
    next_code = recovery_code.generate()
    after = site.slots.replace_password(
        alice, opened.vault_key, NEW, next_code, compromised=compromised
    )
    assert not opens(site, PASSWORD) and not opens(site, CODE, SlotKind.RECOVERY_CODE)
    assert opens(site, NEW) and opens(site, next_code, SlotKind.RECOVERY_CODE)
    assert (after.vault_commitment != alice.vault_commitment) is compromised
    assert after.key_ids[-1:] == alice.key_ids


def test_a_code_with_a_typo_is_told_from_one_that_is_spent(
    site: CopiedSite, alice: AccountRecord
) -> None:
    written = recovery_code.written(CODE)
    typo = ("0" if written[0] != "0" else "1") + written[1:]
    with pytest.raises(BadCode):
        recovery_code.read(typo)
    assert opens(site, recovery_code.read(written.lower()), SlotKind.RECOVERY_CODE)
    site.slots.replace_code(alice, key_of(site), recovery_code.generate())
    assert not opens(site, recovery_code.read(written), SlotKind.RECOVERY_CODE)


def test_of_two_who_use_one_code_at_once_one_wins(site: CopiedSite, alice: AccountRecord) -> None:
    ready = threading.Barrier(2, timeout=10)
    results: dict[bytes, object] = {}

    def use(password: Secret) -> None:
        vault_key = site.accounts.open(alice, CODE, SlotKind.RECOVERY_CODE).vault_key
        ready.wait()
        try:
            results[password.reveal()] = site.slots.replace_password(
                alice, vault_key, password, recovery_code.generate()
            )
        except (Conflict, WrongSecret) as error:
            results[password.reveal()] = error

    threads = [threading.Thread(target=use, args=(Secret(b"user %d" % n),)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [word for word, result in results.items() if isinstance(result, AccountRecord)]
    assert len(won) == 1 and len(results) == 2
    assert [opens(site, Secret(word)) for word in results] == [word in won for word in results]


# ---- app passwords


def test_an_app_password_opens_until_it_is_removed_and_a_rekey_follows(
    site: CopiedSite, alice: AccountRecord
) -> None:
    record, phone = site.slots.add_app_password(alice, key_of(site), "phone")
    record, laptop = site.slots.add_app_password(record, key_of(site), "laptop")
    kind = SlotKind.APP_PASSWORD
    assert opens(site, phone.secret, kind) and opens(site, laptop.secret, kind)
    slot = site.accounts.open(record, phone.secret, kind, handle=phone.handle).slot
    site.vaults.use(slot.slot_id, "2026-11-25")
    used = {view.label: view.used for view in site.accounts.show(ALICE).slots}
    assert (used["phone"], used["laptop"]) == ("2026-11-25", "")
    with pytest.raises(WrongSecret):
        site.accounts.open(record, phone.secret, kind, handle=laptop.handle)
    at_once = site.slots.remove_app_password(record, phone.handle, key_of(site))
    assert at_once.vault_commitment != record.vault_commitment and not at_once.rekey_due
    later = site.slots.remove_app_password(at_once, laptop.handle)
    assert later.rekey_due
    assert not opens(site, phone.secret, kind) and not opens(site, laptop.secret, kind)
    assert settle(site, PASSWORD).vault_commitment != later.vault_commitment


def test_app_passwords_are_limited_labelled_once_and_never_share_a_handle(
    site: CopiedSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, first = site.slots.add_app_password(alice, key_of(site), "phone")
    drawn = iter([first, first, app_password.generate()])
    monkeypatch.setattr(app_password, "generate", lambda: next(drawn))
    record, second = site.slots.add_app_password(record, key_of(site), "laptop")
    assert second.handle != first.handle
    with pytest.raises(WrongState, match="phone"):
        site.slots.add_app_password(record, key_of(site), "phone")
    monkeypatch.setattr(slotchanges, "APP_PASSWORDS_LIMIT", 2)
    with pytest.raises(WrongState, match="or 2 of them"):
        site.slots.add_app_password(record, key_of(site), "tablet")
    with pytest.raises(NotFound):
        site.slots.remove_app_password(record, "zzzz")


# ---- generations


def test_reset_and_join_bring_both_generations_together(
    site: CopiedSite, alice: AccountRecord
) -> None:
    fresh = site.generations.reset(alice, NEW)
    assert opens(site, NEW) and not opens(site, PASSWORD)
    again = site.generations.reset(fresh, Secret(b"third"))
    assert [seal.vault_id for seal in again.closed] == [fresh.vault_id, alice.vault_id]
    oldest = again.closed[1]
    old_key = site.accounts.open(again, CODE, SlotKind.RECOVERY_CODE, seal=oldest).vault_key
    joined = site.generations.join(again, key_of(site, Secret(b"third")), oldest, old_key)
    assert joined.key_ids == (*again.key_ids, *alice.key_ids)
    assert site.vaults.get(alice.vault_id) is None
    assert [seal.vault_id for seal in joined.closed] == [fresh.vault_id]
    assert opens(site, Secret(b"third")) and not opens(site, CODE, SlotKind.RECOVERY_CODE)


def test_joining_asks_before_it_gives_the_administrator_a_way_in(
    site: CopiedSite, alice: AccountRecord
) -> None:
    site.admin.set(Secret(b"admin"))
    fresh = site.generations.reset(alice, NEW, admin=site.admin.record())
    seal = fresh.closed[0]
    keys = key_of(site, NEW), seal, site.accounts.open(fresh, PASSWORD, seal=seal).vault_key
    with pytest.raises(UsageError, match="wanted"):
        site.generations.join(fresh, *keys)
    assert now(site) == fresh
    assert site.generations.join(fresh, *keys, accept_admin=True).closed == ()


def test_a_login_carries_what_fits_and_no_change_makes_it_more(
    site: CopiedSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = site.generations.reset(alice, NEW)
    seal = fresh.closed[0]
    old_key = site.accounts.open(fresh, PASSWORD, seal=seal).vault_key
    monkeypatch.setattr(generations_module, "has_room", lambda keys: len(keys) < 2)
    with pytest.raises(WrongState, match="more than a login"):
        site.generations.join(fresh, key_of(site, NEW), seal, old_key)
    with pytest.raises(WrongState, match="as many as"):
        site.generations.rotate(fresh, key_of(site, NEW))
    rekeyed, vault_key = site.generations.rekey(fresh, key_of(site, NEW))
    assert rekeyed.key_ids == fresh.key_ids and rekeyed.public_key == fresh.public_key
    assert site.accounts.private_keys(rekeyed, vault_key)


def test_two_keys_of_one_generation_are_an_alarm(site: CopiedSite, alice: AccountRecord) -> None:
    fresh = site.generations.reset(alice, NEW)
    seal = fresh.closed[0]
    old_key = site.accounts.open(fresh, PASSWORD, seal=seal).vault_key
    write(site, update(private_keys).values(generation=1))
    with pytest.raises(Alarm, match="one generation"):
        site.generations.join(fresh, key_of(site, NEW), seal, old_key)


def test_rotation_after_a_theft_marks_the_mail_until_it_was_encrypted_anew(
    site: CopiedSite, alice: AccountRecord
) -> None:
    record, vault_key = site.generations.rotate(alice, key_of(site), compromised=True)
    assert record.reencrypt
    again, _ = site.generations.rotate(record, vault_key)
    assert again.reencrypt
    assert not site.generations.reencrypted(again).reencrypt


def test_what_was_encrypted_before_an_account_was_plain_can_be_joined(
    site: CopiedSite, alice: AccountRecord
) -> None:
    plain = site.generations.become_plain(site.generations.leave(alice))
    assert (plain.state, len(plain.closed)) == (State.PLAIN, 1)
    again = site.accounts.enable(ALICE, NEW)
    seal = again.closed[0]
    old_key = site.accounts.open(again, PASSWORD, seal=seal).vault_key
    joined = site.generations.join(again, key_of(site, NEW), seal, old_key)
    assert joined.key_ids == (*again.key_ids, *alice.key_ids)
    assert opens(site, NEW)


def test_suspending_and_freezing_twice_is_once(site: CopiedSite, alice: AccountRecord) -> None:
    frozen = site.generations.freeze(alice)
    assert site.generations.freeze(frozen) == frozen
    with pytest.raises(WrongState, match="frozen"):
        site.accounts.open(frozen, PASSWORD)
    thawed = site.generations.thaw(frozen)
    assert site.generations.thaw(thawed) == thawed
    suspended = site.generations.suspend(thawed, suspended=True)
    assert site.generations.suspend(suspended, suspended=True) == suspended


# ---- an account in the wrong state

Use = Callable[[CopiedSite, AccountRecord], object]
KEY = VaultKey(bytes(32))
OPERATIONS: dict[str, Use] = {
    "open": lambda site, record: site.accounts.open(record, PASSWORD),
    "keys": lambda site, record: site.accounts.private_keys(record, KEY),
    "begin": lambda site, record: site.slots.begin_password(record, KEY, NEW),
    "abort": lambda site, record: site.slots.abort_password(record),
    "recover": lambda site, record: site.slots.replace_password(record, KEY, NEW, CODE),
    "code": lambda site, record: site.slots.replace_code(record, KEY, CODE),
    "add": lambda site, record: site.slots.add_app_password(record, KEY, "phone"),
    "remove": lambda site, record: site.slots.remove_app_password(record, "abcd"),
    "admin slot": lambda site, record: site.slots.set_admin_slot(record, KEY, None, wanted=True),
    "no admin": lambda site, record: site.slots.set_admin_slot(record, KEY, None, wanted=False),
    "rekey": lambda site, record: site.generations.rekey(record, KEY),
    "rotate": lambda site, record: site.generations.rotate(record, KEY),
    "reset": lambda site, record: site.generations.reset(record, NEW),
    "join": lambda site, record: site.generations.join(record, KEY, record.seal, KEY),
    "leave": lambda site, record: site.generations.leave(record),
    "return": lambda site, record: site.generations.return_(record),
    "become plain": lambda site, record: site.generations.become_plain(record),
    "freeze": lambda site, record: site.generations.freeze(record),
    "admin": lambda site, record: site.admin.open(record, Secret(b"admin"), "test"),
}  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_needs_a_vault_is_refused_for_a_plain_account(
    site: CopiedSite, operation: str
) -> None:
    record = site.add()
    site.admin.set(Secret(b"admin"))
    with pytest.raises(WrongState):
        OPERATIONS[operation](site, record)
    assert now(site) == record


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("return", WrongState),
        ("become plain", WrongState),
        ("abort", WrongState),
        ("remove", NotFound),
        ("admin slot", Conflict),
        ("begin", Conflict),
        ("rekey", Damaged),
    ],
)
def test_what_does_not_fit_an_encrypted_account_changes_nothing(
    site: CopiedSite, alice: AccountRecord, operation: str, error: type[AtRestError]
) -> None:
    with pytest.raises(error):
        OPERATIONS[operation](site, alice)
    assert now(site) == alice and opens(site, PASSWORD)


@pytest.mark.parametrize("operation", ["add", "reset", "leave"])
def test_an_account_that_leaves_takes_no_new_secrets(
    site: CopiedSite, alice: AccountRecord, operation: str
) -> None:
    leaving = site.generations.leave(alice)
    with pytest.raises(WrongState, match="leaving"):
        OPERATIONS[operation](site, leaving)
    assert opens(site, PASSWORD)
    assert site.generations.return_(leaving).state is State.ENCRYPTED


AFTER_REMOVAL = OPERATIONS.keys() - {"open", "join", "freeze", "return", "remove"}


@pytest.mark.parametrize("operation", sorted(AFTER_REMOVAL))
def test_a_removed_account_can_only_be_looked_back_at(
    site: CopiedSite, alice: AccountRecord, operation: str
) -> None:
    """Whoever read the record before it was removed changes nothing any more."""
    site.accounts.remove(ALICE)
    with pytest.raises((Conflict, WrongState, Damaged, Alarm)):
        OPERATIONS[operation](site, alice)
    assert site.accounts.record(ALICE) is None


def test_the_last_slot_of_an_owner_stays(site: CopiedSite, alice: AccountRecord) -> None:
    vault, admin = site.accounts.vault(alice), site.admin.set(Secret(b"admin"))
    with_admin = site.slots.set_admin_slot(alice, key_of(site), admin, wanted=True)
    pending = [replace(slot, state=SlotState.PENDING) for slot in vault.slots]
    for kept in ([], pending, site.accounts.vault(with_admin).of_kind(SlotKind.ADMIN)):
        with pytest.raises(WrongState, match="last slot"):
            site.accounts.change(with_admin, replace(vault, slots=tuple(kept)))
        with pytest.raises(WrongState, match="last slot"):
            site.accounts.change(with_admin, others=[replace(vault, slots=tuple(kept))])
    assert opens(site, PASSWORD)


def test_a_vault_key_of_before_a_rekey_makes_no_slot(
    site: CopiedSite, alice: AccountRecord
) -> None:
    """Its slot would open nothing, and the one that it replaces would be gone."""
    stale = key_of(site)
    record, _ = site.generations.rekey(alice, stale)
    for change in (
        site.slots.begin_password,
        site.slots.replace_code,
        site.slots.replace_password,
    ):
        with pytest.raises(Conflict, match="another key"):
            change(record, stale, NEW)
    with pytest.raises(Conflict, match="another key"):
        site.slots.add_app_password(record, stale, "phone")
    assert opens(site, PASSWORD)


# ---- what somebody who can write to the stores may try


def write(site: CheapSite, statement: Any, store: str = "vaults") -> None:
    with getattr(site, store).store.transaction() as connection:
        connection.execute(statement)


@pytest.mark.parametrize("memory", [0, MEMORY_FLOOR - 1, 1 << 40])
def test_kdf_parameters_out_of_bounds_are_never_run_even_with_a_digest_that_fits(
    site: CopiedSite, alice: AccountRecord, memory: int
) -> None:
    vault = site.accounts.vault(alice)
    (slot,) = vault.of_kind(SlotKind.PASSWORD)
    bad = replace(slot, kdf=replace(slot.kdf, memory=memory, passes=2 * bool(memory)))
    row = {"kdf_memory": memory, "kdf_passes": 2 * bool(memory), "digest": bad.digest()}
    write(site, update(slots).where(slots.c.slot_id == slot.slot_id).values(**row))
    with pytest.raises(Alarm, match="slots"):
        site.accounts.open(alice, PASSWORD)
    # And if the record were signed for it:
    changed = (*vault.of_kind(SlotKind.RECOVERY_CODE), bad)
    resigned = site.accounts.commit(alice.next(slots_digest=digest_of(changed)))
    with pytest.raises(Damaged):
        site.accounts.open(resigned, PASSWORD)


def test_a_slot_of_mallory_moved_to_alice_opens_nothing(
    site: CopiedSite, alice: AccountRecord
) -> None:
    theirs = site.add("mallory@example.org", Secret(b"mallory's"))
    (slot,) = site.accounts.vault(theirs).slots
    moved = replace(slot, account_id=alice.account_id, vault_id=alice.vault_id)
    row = {"account_id": alice.account_id, "vault_id": alice.vault_id, "digest": moved.digest()}
    write(site, update(slots).where(slots.c.slot_id == slot.slot_id).values(**row))
    with pytest.raises(Alarm):
        site.accounts.open(alice, Secret(b"mallory's"))
    with pytest.raises(Alarm):
        site.accounts.open(alice, PASSWORD)
    assert now(site) == alice


def test_a_slot_added_for_a_password_of_mallorys_is_an_alarm(
    site: CopiedSite, alice: AccountRecord
) -> None:
    forged = make_slot(
        Secret(b"mallory's"),
        VaultKey.generate(),
        account_id=alice.account_id,
        vault_id=alice.vault_id,
        kind=SlotKind.PASSWORD,
        kdf=Kdf.argon2id(MEMORY_FLOOR, PASSES_FLOOR),
        created=1,
    )
    vault = site.accounts.vault(alice)
    site.vaults.put(replace(vault, slots=(*vault.slots, forged)))
    for secret in (Secret(b"mallory's"), PASSWORD):
        with pytest.raises(Alarm, match="not those of its record"):
            site.accounts.open(alice, secret)


@pytest.mark.parametrize("change", ["rename", "suspend", "freeze", "policy"])
def test_no_change_hides_that_both_stores_were_rolled_back(
    site: CopiedSite, alice: AccountRecord, change: str
) -> None:
    """A password change is undone by an old copy of records and vaults; the pin knows better."""
    site.admin.set(Secret(b"admin"))
    before = site.slots.set_admin_slot(alice, key_of(site), site.admin.record(), wanted=True)
    old = site.content()
    site.open()
    after = site.slots.replace_password(before, key_of(site), NEW)
    site.put_back({name: old[name] for name in ("records.db", "vaults.db")})
    with pytest.raises(Alarm, match="rollback"):
        now(site)
    stale = site.accounts.all()[0]
    assert stale == before
    if change == "policy":  # walks over all accounts, and leaves this one alone
        site.admin.set_policy("forbidden")
        assert site.admin.withdraw() == ()
    else:
        do: dict[str, Callable[[], object]] = {
            "rename": lambda: site.accounts.change(stale, names=(BOB,)),
            "suspend": lambda: site.generations.suspend(stale, suspended=True),
            "freeze": lambda: site.generations.freeze(stale),
        }
        with pytest.raises(Alarm, match="older in both"):
            do[change]()
    with pytest.raises(Alarm, match="rollback"):
        now(site)
    assert site.pins.epoch(alice.account_id) == after.epoch


# ---- a store that fails


def test_a_login_completes_a_change_that_stopped_half_way(
    site: CopiedSite, alice: AccountRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could log in until somebody changed something, or unlock was started anew."""

    def locked(_signed: object) -> None:
        raise StoreUnavailable("locked")

    vault_key = key_of(site)
    monkeypatch.setattr(site.records, "put", locked)
    with pytest.raises(StoreUnavailable):
        site.slots.begin_password(alice, vault_key, NEW)
    with pytest.raises(Conflict, match="being changed"):
        opens(site, PASSWORD)
    monkeypatch.undo()
    with pytest.raises(Conflict, match="being changed"):
        opens(site, PASSWORD)
    assert opens(site, PASSWORD) and opens(site, NEW)


def test_a_private_key_taken_out_of_the_vault_stops_a_rekey(
    site: CopiedSite, alice: AccountRecord
) -> None:
    vault_key = key_of(site)
    write(site, delete(private_keys))
    with pytest.raises(Alarm, match="private keys"):
        site.generations.rekey(alice, vault_key)
    assert now(site) == alice
