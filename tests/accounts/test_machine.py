"""The life of keys as a state machine: whatever happens, and whatever fails, mail opens with the
secrets that should open it, and with no other.

The model (`people.py`) is told what each operation promises; the site is a real one, with its
stores in files. An operation may fail or end at any step between the stores: then the account
must stand as before it or as after it, and the model follows what is durable.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import AccountRecord, State, VaultSeal
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import (
    Alarm,
    AtRestError,
    Conflict,
    Damaged,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.secret import Secret
from tests.accounts.faults import ADMIN_STEPS, MEMORY, STEPS, CopiedSite, Crash, Fault, cheapen
from tests.accounts.people import AdminModel, Key, Person, VaultModel
from tests.sites import CheapSite

WHO = st.sampled_from([0, 0, 0, 1])  # more happens to one account than to two
BY = st.sampled_from(["", "password", "password", "code", "admin"])
OFTEN = st.sampled_from([True, True, True, False])


def faults(*steps: str) -> st.SearchStrategy[Fault | None]:
    return st.none() | st.builds(Fault, st.sampled_from(steps), st.booleans(), st.booleans())


def change(*steps: str, **strategies: Any) -> Callable[[Any], Any]:
    """A rule whose first call of one of these steps may fail."""

    def made(function: Callable[..., None]) -> Any:
        def run(self: "KeyLife", fault: Fault | None = None, **arguments: Any) -> None:
            self.fault = fault
            function(self, **arguments)
            self.fault = None

        run.__name__ = function.__name__
        strategies["fault"] = faults(*(steps or STEPS))
        wrap: Callable[[Any], Any] = rule(**strategies)
        return wrap(run)

    return made


def seals(record: AccountRecord) -> tuple[VaultSeal, ...]:
    return (record.seal, *record.closed) if record.vault_id else record.closed


class KeyLife(RuleBasedStateMachine):
    template: CheapSite

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        cheapen(self.patch)
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY)
        self.site = CopiedSite.of(Path(self.directory.name), self.template)
        self.people: list[Person] = []
        self.admin = AdminModel()
        self.fault: Fault | None = None
        self.backup: tuple[dict[str, bytes], list[int | None], int] | None = None
        self.made = 0

    @initialize(enabled=st.booleans(), admin=st.booleans())
    def two_accounts(self, enabled: bool, admin: bool) -> None:
        if admin:
            self.admin.password = self.key().typed
            self.site.admin.set(self.admin.password)
        for name in ("alice@example.org", "bob@example.org"):
            self.people.append(Person(name, self.site.add(name).account_id))
        self.enable(0, code=True)
        if enabled:
            self.enable(1, code=False)

    def teardown(self) -> None:
        for person in self.people:
            self.check(person, thorough=True)
        self.site.close()
        self.directory.cleanup()
        self.patch.undo()

    # ---- how an operation is done

    def key(self, kind: SlotKind = SlotKind.PASSWORD) -> Key:
        self.made += 1
        return Key(kind, b"%s number %d" % (kind.value.encode(), self.made))

    def record(self, person: Person) -> AccountRecord:
        record = self.site.accounts.record(person.name)
        assert record is not None
        return record

    def act(
        self, person: Person, operation: Callable[[], Any], then: Callable[[Any], None]
    ) -> Any:
        """Do it, perhaps with the armed fault; `then` tells the model, once it is durable.

        A message comes before each, so that every generation of keys has mail.
        """
        self.deliver(person)
        before = self.site.vaults.epoch(person.account_id)
        result, fault = self.faulty(operation)
        done = self.site.vaults.epoch(person.account_id) != before
        if fault is None or done:
            then(result)
        self.check(person)
        return result

    def faulty(self, operation: Callable[[], Any]) -> tuple[Any, Fault | None]:
        """The result, and the fault if it came to pass; what follows it has happened then."""
        fault, self.fault = self.fault, None
        if fault is None:
            return operation(), None
        patch, result = pytest.MonkeyPatch(), None
        try:
            fault.arm(self.site, patch)
            result = operation()
        except (AtRestError, Crash):
            if not fault.fired:
                raise
        finally:
            patch.undo()
        if not fault.fired:
            return result, None
        if fault.crash:
            self.site.restart()
        else:
            with self.site.accounts.writing():  # as the next change does
                pass
        return result, fault

    # ---- what must hold

    def check(self, person: Person, *, thorough: bool = False) -> None:
        record = self.record(person)
        assert (record.state, record.frozen, record.names[0], len(record.closed)) == (
            person.state, person.frozen, person.name, len(person.closed)
        )  # fmt: skip
        assert (record.rekey_due, record.admin_refused) == (person.rekey_due, person.refused)
        assert record.epoch >= person.epoch
        person.epoch = record.epoch
        assert list(self.site.vaults.unfinished()) == []
        assert bool(record.admin_key) == (person.present is not None and person.present.admin)
        for model, seal in zip(person.vaults(), seals(record), strict=True):
            vault_key = self.check_vault(record, seal, model, thorough)
            self.check_admin(record, seal, model, vault_key)
            self.check_mail(record, seal, vault_key, model.mail)
            if thorough or model is person.present:
                self.check_spent(person, record, seal, thorough)

    def open(self, record: AccountRecord, seal: VaultSeal, key: Key) -> VaultKey:
        if record.frozen:
            with pytest.raises(WrongState, match="frozen"):
                self.site.accounts.open(record, key.typed, key.kind, seal=seal, handle=key.handle)
        return self.site.accounts.open(
            record, key.typed, key.kind, seal=seal, handle=key.handle, frozen=True
        ).vault_key

    def check_vault(
        self, record: AccountRecord, seal: VaultSeal, model: VaultModel, thorough: bool
    ) -> VaultKey:
        assert len(self.site.accounts.vault(record, seal).slots) == model.slots()
        keys = model.keys() if thorough else model.keys()[:4]
        first, *others = [self.open(record, seal, key) for key in keys]
        assert all(other == first for other in others)
        return first

    def check_mail(
        self, record: AccountRecord, seal: VaultSeal, vault_key: VaultKey, mail: list[bytes]
    ) -> None:
        private = {
            key.public.key_id: key
            for key in self.site.accounts.private_keys(record, vault_key, seal)
        }
        for sealed in mail:
            opened = dcrypt.open_bytes(sealed, lambda h: dcrypt.unwrap(h, private[h.key_id]))
            assert opened.startswith(b"Subject: ")

    def check_spent(
        self, person: Person, record: AccountRecord, seal: VaultSeal, thorough: bool
    ) -> None:
        other = next(one for one in self.people if one is not person)
        foreign = other.present.keys() if other.present else []
        for key in [*foreign[:1], *(person.spent if thorough else person.spent[-3:])]:
            with pytest.raises(WrongSecret):
                self.open_only(record, seal, key)

    def open_only(self, record: AccountRecord, seal: VaultSeal, key: Key) -> None:
        self.site.accounts.open(
            record, key.typed, key.kind, seal=seal, handle=key.handle, frozen=True
        )

    def check_admin(
        self, record: AccountRecord, seal: VaultSeal, model: VaultModel, vault_key: VaultKey
    ) -> None:
        password, admin = self.admin.password, self.site.admin
        if password is None:
            return
        if not model.admin or record.frozen or self.admin.policy == "forbidden":
            with pytest.raises(WrongState):
                admin.open(record, password, "test", seal)
        else:
            assert admin.open(record, password, "test", seal) == vault_key
            for spent in self.admin.spent[-2:]:
                with pytest.raises(WrongSecret):
                    admin.open(record, spent, "test", seal)

    # ---- mail

    @rule(who=WHO)
    def mail_comes(self, who: int) -> None:
        self.deliver(self.people[who])

    def deliver(self, person: Person) -> None:
        signed = self.site.records.by_name(person.name)  # as delivery reads it
        assert signed is not None
        assert (signed.record.state is State.ENCRYPTED) == (person.state is State.ENCRYPTED)
        if person.state is State.ENCRYPTED:
            self.made += 1
            key = PublicKey.from_der(signed.record.public_key)
            person.vault.mail.append(dcrypt.seal(key, b"Subject: %d\n\n" % self.made))

    # ---- enable, leave, names

    @change(who=WHO, code=st.booleans())
    def enable_again(self, who: int, code: bool) -> None:
        self.enable(who, code)

    def enable(self, who: int, code: bool) -> None:
        person, password = self.people[who], self.key()
        recovery = self.key(SlotKind.RECOVERY_CODE) if code else None
        if person.state is not State.PLAIN:
            with pytest.raises(WrongState):
                self.site.accounts.enable(person.name, password.typed)
            return

        def then(_result: Any) -> None:
            person.state = State.ENCRYPTED
            person.present = VaultModel(password, code=recovery, admin=self.admin.may_open(person))

        self.act(
            person,
            lambda: self.site.accounts.enable(
                person.name,
                password.typed,
                recovery.typed if recovery else None,
                self.site.admin.record(),
            ),
            then,
        )

    @change(who=WHO, back=OFTEN)
    def leave(self, who: int, back: bool) -> None:
        for _ in range(1 + back):
            self.leave_or_return(who)

    def leave_or_return(self, who: int) -> None:
        person, record = self.people[who], self.record(self.people[who])
        change, after = {
            State.ENCRYPTED: (self.site.generations.leave, State.LEAVING),
            State.LEAVING: (self.site.generations.return_, State.ENCRYPTED),
            State.PLAIN: (self.site.generations.leave, State.PLAIN),
        }[person.state]
        if person.state is State.PLAIN:
            with pytest.raises(WrongState):
                change(record)
            return
        self.act(person, lambda: change(record), lambda _: setattr(person, "state", after))

    @precondition(lambda self: any(p.state is State.LEAVING for p in self.people))
    @change()
    def become_plain(self) -> None:
        person = next(one for one in self.people if one.state is State.LEAVING)
        record = self.record(person)

        def then(_result: Any) -> None:
            person.closed.insert(0, person.vault)
            person.state, person.present, person.rekey_due = State.PLAIN, None, False

        self.act(person, lambda: self.site.generations.become_plain(record), then)

    @change(who=WHO)
    def rename(self, who: int) -> None:
        person = self.people[who]
        self.made += 1
        name = f"name{self.made}@example.org"
        before = self.site.vaults.epoch(person.account_id)
        _, fault = self.faulty(lambda: self.site.accounts.rename(person.name, name))
        if fault is None or self.site.vaults.epoch(person.account_id) != before:
            person.name = name
        self.check(person)

    # ---- the owner's operations on a vault; they need the vault open

    def opened(self, person: Person, which: str = "password") -> tuple[AccountRecord, Any] | None:
        """The record and what the secret opens; None where there is nothing to open."""
        key = getattr(person.present, which, None)
        if key is None or person.frozen:
            return None
        record = self.record(person)
        return record, self.site.accounts.open(record, key.typed, key.kind)

    @change(who=WHO, after=st.sampled_from(["", "log in", "give up"]))
    def change_password(self, who: int, after: str) -> None:
        self.begin_password(who)
        if after == "log in":
            self.log_in(who, "pending", verified=True)
        elif after and self.people[who].present and self.people[who].vault.pending:
            self.abort_password(who)

    def begin_password(self, who: int) -> None:
        person, new = self.people[who], self.key()
        if found := self.opened(person):
            record, opened = found

            def then(_result: Any) -> None:
                person.spend(person.vault.pending)
                person.vault.pending = new

            self.act(
                person,
                lambda: self.site.slots.begin_password(record, opened.vault_key, new.typed),
                then,
            )

    def abort_password(self, who: int) -> None:
        person = self.people[who]
        if not person.present:
            return
        record = self.record(person)
        if not person.present.pending:
            with pytest.raises(WrongState, match="under way"):
                self.site.slots.abort_password(record)
            return

        def then(_result: Any) -> None:
            person.spend(person.vault.pending)
            person.vault.pending = None

        self.act(person, lambda: self.site.slots.abort_password(record), then)

    @change(
        who=WHO, which=st.sampled_from(["password", "pending", "code"]), verified=st.booleans()
    )
    def log_in_somehow(self, who: int, which: str, verified: bool) -> None:
        self.log_in(who, which, verified=verified)

    def log_in(self, who: int, which: str, *, verified: bool) -> None:
        person = self.people[who]
        if not (found := self.opened(person, which)):
            return
        record, opened = found
        secret = getattr(person.vault, which).typed
        admin = self.site.admin.record()

        def then(_result: Any) -> None:
            vault = person.vault
            if which == "pending" and verified and vault.pending:
                person.spend(vault.password)
                vault.password, vault.pending = vault.pending, None
            if self.admin.policy == "required" and self.admin.password:
                vault.admin = True
            person.rekey_due = False

        self.act(
            person,
            lambda: self.site.slots.settle(
                record, opened, secret, lambda: admin, verified=verified
            ),
            then,
        )

    @change(who=WHO, by=st.sampled_from(["code", "admin"]), compromised=st.booleans())
    def recover(self, who: int, by: str, compromised: bool) -> None:
        person, new = self.people[who], self.key()
        if by == "admin":
            vault_key = self.admin_key(person)
        else:
            found = self.opened(person, "code")
            vault_key = found[1].vault_key if found else None
        if vault_key is None:
            return
        record, code = self.record(person), self.key(SlotKind.RECOVERY_CODE)

        def then(_result: Any) -> None:
            vault = person.vault
            person.spend(vault.password, vault.pending, vault.code)
            vault.password, vault.pending, vault.code = new, None, code
            person.rekey_due = person.rekey_due and not compromised

        self.act(
            person,
            lambda: self.site.slots.replace_password(
                record, vault_key, new.typed, code.typed, compromised=compromised
            ),
            then,
        )

    def admin_key(self, person: Person, closed: int | None = None) -> VaultKey | None:
        model = person.present if closed is None else person.closed[closed]
        if not model or not model.admin or person.frozen or self.admin.policy == "forbidden":
            return None
        assert self.admin.password is not None
        record = self.record(person)
        seal = None if closed is None else record.closed[closed]
        return self.site.admin.open(record, self.admin.password, "test", seal)

    @change(who=WHO)
    def new_code(self, who: int) -> None:
        person, code = self.people[who], self.key(SlotKind.RECOVERY_CODE)
        if found := self.opened(person):
            record, opened = found

            def then(_result: Any) -> None:
                person.spend(person.vault.code)
                person.vault.code = code

            self.act(
                person,
                lambda: self.site.slots.replace_code(record, opened.vault_key, code.typed),
                then,
            )

    @change(who=WHO)
    def add_app_password(self, who: int) -> None:
        person = self.people[who]
        self.made += 1
        label = f"program {self.made}"
        if person.state is not State.ENCRYPTED or not (found := self.opened(person)):
            return
        record, opened = found

        def then(result: Any) -> None:
            if result is None:
                person.vault.unknown_apps += 1
            else:
                made = result[1]
                key = Key(SlotKind.APP_PASSWORD, made.secret.reveal(), made.handle)
                person.vault.apps.append(key)

        self.act(
            person,
            lambda: self.site.slots.add_app_password(record, opened.vault_key, label),
            then,
        )

    @change(who=WHO, with_secret=st.booleans())
    def remove_app_password(self, who: int, with_secret: bool) -> None:
        person = self.people[who]
        if not (found := self.opened(person)) or not person.vault.apps:
            return
        record, opened = found
        key = person.vault.apps[0]

        def then(_result: Any) -> None:
            person.spend(person.vault.apps.pop(0))
            person.rekey_due = not with_secret

        self.act(
            person,
            lambda: self.site.slots.remove_app_password(
                record, key.handle, opened.vault_key if with_secret else None
            ),
            then,
        )

    # ---- generations

    @change(who=WHO, code=st.booleans(), by=BY, accept=st.booleans())
    def reset_and_perhaps_join(self, who: int, code: bool, by: str, accept: bool) -> None:
        self.reset(who, code=code)
        if by:
            self.join(self.people[who], 0, by, accept=accept)

    def reset(self, who: int, *, code: bool) -> None:
        person, password = self.people[who], self.key()
        recovery = self.key(SlotKind.RECOVERY_CODE) if code else None
        record, admin = self.record(person), self.site.admin.record()

        def reset() -> AccountRecord:
            return self.site.generations.reset(
                record, password.typed, recovery.typed if recovery else None, admin
            )

        if person.state is not State.ENCRYPTED:
            with pytest.raises(WrongState):
                reset()
            return

        def then(_result: Any) -> None:
            person.closed.insert(0, person.vault)
            person.present = VaultModel(password, code=recovery, admin=self.admin.may_open(person))
            person.rekey_due = False

        self.act(person, reset, then)

    @precondition(lambda self: any(person.closed for person in self.people))
    @change(number=st.integers(0, 3), by=BY, accept=st.booleans())
    def join_some_vault(self, number: int, by: str, accept: bool) -> None:
        person = next(person for person in self.people if person.closed)
        self.join(person, number % len(person.closed), by or "password", accept=accept)

    def join(self, person: Person, number: int, by: str, *, accept: bool) -> None:
        if not person.closed:
            return
        model = person.closed[number]
        if not (found := self.opened(person)):
            return
        record, opened = found
        seal, key = record.closed[number], getattr(model, by, None)
        if by == "admin":
            old_key = self.admin_key(person, number)
        else:
            old_key = self.open(record, seal, key) if key else None
        if old_key is None:
            return

        def join() -> AccountRecord:
            return self.site.generations.join(
                record, opened.vault_key, seal, old_key, accept_admin=accept
            )

        if len(record.key_ids) + len(seal.key_ids) > 8:  # more may not fit in an answer
            return
        if person.vault.admin and not model.admin and not accept:
            with pytest.raises(UsageError):
                join()
            return

        def then(_result: Any) -> None:
            person.vault.mail += model.mail
            person.closed.remove(model)
            person.spend(*model.keys())

        self.act(person, join, then)

    @change(who=WHO, compromised=st.booleans())
    def rotate(self, who: int, compromised: bool) -> None:
        person = self.people[who]
        if not (found := self.opened(person)) or len(found[0].key_ids) > 7:
            return
        record, opened = found

        def then(_result: Any) -> None:
            person.rekey_due = False

        self.act(
            person,
            lambda: self.site.generations.rotate(
                record, opened.vault_key, compromised=compromised
            ),
            then,
        )

    @change(who=WHO, back=OFTEN)
    def freeze(self, who: int, back: bool) -> None:
        for _ in range(1 + back):
            self.freeze_or_thaw(who)

    def freeze_or_thaw(self, who: int) -> None:
        person, record = self.people[who], self.record(self.people[who])
        change = self.site.generations.thaw if person.frozen else self.site.generations.freeze
        if person.state is State.PLAIN:
            with pytest.raises(WrongState):
                change(record)
            return
        after = not person.frozen
        self.act(person, lambda: change(record), lambda _: setattr(person, "frozen", after))

    # ---- admin recovery

    @change(who=WHO, wanted=st.booleans())
    def choose_admin(self, who: int, wanted: bool) -> None:
        person = self.people[who]
        if not (found := self.opened(person)):
            return
        (record, opened), admin = found, self.site.admin.record()

        def choose() -> AccountRecord:
            return self.site.slots.set_admin_slot(record, opened.vault_key, admin, wanted=wanted)

        if self.admin.policy == ("forbidden" if wanted else "required") or (
            wanted and self.admin.password is None
        ):
            with pytest.raises(WrongState):
                choose()
            return

        def then(_result: Any) -> None:
            if not wanted:
                person.rekey_due = person.rekey_due and not person.vault.admin
                for vault in person.closed:
                    vault.admin = False
            person.vault.admin, person.refused = wanted, not wanted

        self.act(person, choose, then)

    def admin_act(self, operation: Callable[[], Any]) -> bool:
        """Whether the admin record became another one."""
        before = self.site.admin.record().epoch
        self.faulty(operation)
        return self.site.admin.record().epoch != before

    @change(*ADMIN_STEPS)
    def set_or_change_admin_password(self) -> None:
        old, new = self.admin.password, self.key().typed
        if old is None:
            if self.admin.policy == "forbidden":
                with pytest.raises(WrongState):
                    self.site.admin.set(new)
            elif self.admin_act(lambda: self.site.admin.set(new)):
                self.admin.password = new
        elif self.admin_act(lambda: self.site.admin.change_password(old, new)):
            self.admin.password = new
            self.admin.spent.append(old)
        for person in self.people:
            self.check(person)
        named = 0 if self.admin.password is None else 1
        self.site.restart()  # which forgets what failed changes left
        assert len(self.site.vaults.ids_of("admin")) == named

    @precondition(lambda self: self.admin.password)
    @change(*STEPS, *ADMIN_STEPS)
    def change_admin_key(self) -> None:
        old, new = self.admin.password, self.key().typed
        assert old is not None
        self.faulty(lambda: self.site.admin.change_key(old, new))
        record = self.site.admin.record()
        if record.previous is not None or self.opens_admin(old):
            # Cut short: until it is gone on with, one or the other password opens each account.
            self.check_either(old, new)
            record, left = self.site.admin.change_key(old, new)
            assert left == 0
        assert record.previous is None
        self.admin.password = new
        self.admin.spent.append(old)
        for person in self.people:
            if person.present and person.present.admin:
                person.rekey_due = True
            self.check(person)

    def opens_admin(self, secret: Secret) -> bool:
        try:
            self.site.admin.check(secret)
        except WrongSecret:
            return False
        return True

    def check_either(self, old: Secret, new: Secret) -> None:
        if self.admin.policy == "forbidden":
            return
        for person in self.people:
            record = self.record(person)
            for model, seal in zip(person.vaults(), seals(record), strict=False):
                if model.admin and not record.frozen:
                    assert any(self.admin_opens(record, one, seal) for one in (old, new))

    def admin_opens(self, record: AccountRecord, secret: Secret, seal: VaultSeal) -> bool:
        try:
            self.site.admin.open(record, secret, "test", seal)
        except (WrongState, WrongSecret):
            return False
        return True

    @change(
        *STEPS,
        *ADMIN_STEPS,
        policy=st.sampled_from(["allowed", "required", "required", "forbidden"]),
    )
    def set_policy(self, policy: str) -> None:
        if self.admin_act(lambda: self.site.admin.set_policy(policy)):
            self.admin.policy = policy
        if self.admin.policy == "forbidden":
            self.faulty(self.site.admin.withdraw)
            self.site.admin.withdraw()  # what failed is done at the next start
            for person in self.people:
                if person.present and person.present.admin:
                    person.rekey_due = True
                for vault in person.vaults():
                    vault.admin = False
        for person in self.people:
            self.check(person)

    # ---- restarts, and old copies

    @rule()
    def restart(self) -> None:
        self.site.restart()

    def heads(self) -> list[int | None]:
        return [self.site.vaults.epoch(person.account_id) for person in self.people]

    @rule()
    def back_up(self) -> None:
        heads, admin = self.heads(), self.site.admin.record().epoch
        self.backup = (self.site.content(), heads, admin)
        self.site.open()

    @precondition(lambda self: self.backup)
    @rule(which=st.sampled_from([{"records"}, {"vaults"}, {"records", "vaults"}]))
    def restore_an_old_copy(self, which: set[str]) -> None:
        assert self.backup is not None
        content, heads, admin = self.backup
        now, present = self.heads(), self.site.admin.record().epoch
        kept = self.site.content()
        self.site.put_back({f"{name}.db": content[f"{name}.db"] for name in which})
        self.site.accounts.repair()
        for person, before, after in zip(self.people, heads, now, strict=True):
            if before != after and "records" in which:
                with pytest.raises(Alarm):
                    self.site.accounts.record(person.name)
            elif before != after:
                self.check_old_vaults(person)
        if admin != present and "records" in which:
            with pytest.raises(Alarm):
                self.site.admin.record()
        elif admin != present:
            for secret in self.admin.spent:
                with pytest.raises(AtRestError):
                    self.site.admin.check(secret)
        self.site.content()
        self.site.put_back({name: kept[name] for name in kept if name != "pins.db"})
        for person in self.people:
            self.check(person)

    def check_old_vaults(self, person: Person) -> None:
        """Older slots beside a newer record: what opens is what should, and nothing changes."""
        record = self.record(person)
        for model, seal in zip(person.vaults(), seals(record), strict=False):
            for key in [*person.spent, *model.keys()]:
                try:
                    vault_key = self.site.accounts.open(
                        record, key.typed, key.kind, seal=seal, handle=key.handle, frozen=True
                    ).vault_key
                    self.check_mail(record, seal, vault_key, model.mail)
                except (Alarm, Conflict, Damaged, WrongSecret):
                    continue
                assert key in list(model.keys())
        with pytest.raises((Alarm, Conflict)):
            self.site.generations.suspend(record, suspended=not record.suspended)


def test_mail_opens_with_the_secrets_that_should_open_it_and_no_others(
    template: CheapSite,
) -> None:
    KeyLife.template = template
    run_state_machine_as_test(
        KeyLife,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_long_life(template: CheapSite) -> None:
    """One walk that comes past every operation, for those that chance seldom puts together."""
    KeyLife.template = template
    life = KeyLife()
    try:
        live(life)
    finally:
        life.teardown()


def live(life: KeyLife) -> None:
    life.two_accounts(enabled=True, admin=True)
    for _ in range(2):
        life.begin_password(0)
        life.log_in(0, "pending", verified=True)
        life.add_app_password(who=0)
        life.add_app_password(who=0)
        life.remove_app_password(who=0, with_secret=True)
        life.recover(who=0, by="code", compromised=False)
        life.begin_password(0)
        life.abort_password(0)
        life.new_code(who=0)
        life.log_in(0, "code", verified=True)
    life.reset(0, code=True)
    life.reset(0, code=True)
    life.change_admin_key()
    life.join(life.people[0], 1, "admin", accept=False)
    life.join(life.people[0], 0, "code", accept=False)
    life.recover(who=0, by="admin", compromised=True)
    life.back_up()
    life.remove_app_password(who=0, with_secret=False)
    for which in ({"records"}, {"vaults"}, {"records", "vaults"}):
        life.restore_an_old_copy(which)
    life.log_in(0, "password", verified=True)
    life.freeze_or_thaw(0)
    life.reset(0, code=False)
    life.freeze_or_thaw(0)
    life.set_policy(policy="forbidden")
    life.join(life.people[0], 0, "code", accept=False)
    life.set_policy(policy="required")
    life.log_in(0, "password", verified=True)
    life.rotate(who=0, compromised=True)
    life.leave_or_return(0)
    life.become_plain()
    life.enable(0, code=True)
    life.join(life.people[0], 0, "password", accept=True)
    life.rename(who=0)
    life.restart()
