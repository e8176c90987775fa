"""A process that ends at any step of any operation leaves a secret that opens, and all old mail.

First with an exception at each call between the stores, then with real processes that end at
their n-th commit, for n = 1, 2, … until one runs through.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import WrongSecret
from lmtp_atrest.secret import Secret
from tests.accounts import ending
from tests.accounts.faults import ADMIN_STEPS, STEPS, CopiedSite, Crash, Fault
from tests.sites import PASSWORD, CheapSite

ALICE = "alice@example.org"
OLD, NEW = Secret(b"the password before"), Secret(b"a new password")
CODE, NEXT_CODE = Secret(b"0123456789ABCDEFGHJKMNPQRS"), Secret(b"SRQPNMKJHGFEDCBA9876543210")
ADMIN, NEW_ADMIN = Secret(b"admin"), Secret(b"a new admin password")
MESSAGE = b"Subject: canary\n\nhello\n"


def now(site: CheapSite) -> AccountRecord:
    record = site.accounts.record(ALICE)
    assert record is not None
    return record


def by(site: CheapSite, secret: Secret, kind: SlotKind = SlotKind.PASSWORD) -> VaultKey:
    return site.accounts.open(now(site), secret, kind).vault_key


def settle(site: CheapSite) -> None:
    opened = site.accounts.open(now(site), PASSWORD)
    site.slots.settle(now(site), opened, PASSWORD, site.admin.record, verified=True)


def prepare(site: CheapSite) -> None:
    """Alice with a code, app passwords, a closed vault and admin slots; a rekey is due."""
    site.admin.set(ADMIN)
    site.add()
    site.accounts.enable(ALICE, OLD, admin=site.admin.record())
    site.generations.reset(now(site), PASSWORD, CODE, site.admin.record())
    site.slots.add_app_password(now(site), by(site, PASSWORD), "phone")
    handle = site.accounts.vault(now(site)).of_kind(SlotKind.APP_PASSWORD)[0].slot_id[:4]
    site.slots.add_app_password(now(site), by(site, PASSWORD), "laptop")
    site.slots.remove_app_password(now(site), handle)  # so that a rekey is due


def handle(site: CheapSite) -> str:
    return site.accounts.vault(now(site)).of_kind(SlotKind.APP_PASSWORD)[0].slot_id[:4]


def recover(site: CheapSite) -> None:
    vault_key = by(site, CODE, SlotKind.RECOVERY_CODE)
    site.slots.replace_password(now(site), vault_key, NEW, NEXT_CODE, compromised=True)


def join(site: CheapSite) -> None:
    record, seal = now(site), now(site).closed[0]
    old_key = site.accounts.open(record, OLD, seal=seal).vault_key
    site.generations.join(record, by(site, PASSWORD), seal, old_key)


def forbid(site: CheapSite) -> None:
    site.admin.set_policy("forbidden")
    site.admin.withdraw()


OPERATIONS: dict[str, Callable[[CheapSite], object]] = {
    "begin": lambda site: site.slots.begin_password(now(site), by(site, PASSWORD), NEW),
    "replace": lambda site: site.slots.replace_password(now(site), by(site, PASSWORD), NEW),
    "recover": recover,
    "code": lambda site: site.slots.replace_code(now(site), by(site, PASSWORD), NEXT_CODE),
    "settle": settle,
    "add": lambda site: site.slots.add_app_password(now(site), by(site, PASSWORD), "tablet"),
    "remove": lambda site: site.slots.remove_app_password(
        now(site), handle(site), by(site, PASSWORD)
    ),
    "refuse admin": lambda site: site.slots.set_admin_slot(
        now(site), by(site, PASSWORD), site.admin.record(), wanted=False
    ),
    "rotate": lambda site: site.generations.rotate(now(site), by(site, PASSWORD)),
    "reset": lambda site: site.generations.reset(now(site), NEW, NEXT_CODE, site.admin.record()),
    "join": join,
    "leave": lambda site: site.generations.leave(now(site)),
    "freeze": lambda site: site.generations.freeze(now(site)),
    "rename": lambda site: site.accounts.alias_add(ALICE, "other@example.org"),
    "admin password": lambda site: site.admin.change_password(ADMIN, NEW_ADMIN),
    "admin key": lambda site: site.admin.change_key(ADMIN, NEW_ADMIN),
    "forbid": forbid,
}  # fmt: skip
# What its doer may count on afterwards: these, if it was not done, and those, if it was.
PASSWORDS = {"begin": (PASSWORD, NEW), "replace": (NEW,), "recover": (NEW,), "reset": (NEW,)}
CODES = {"recover": NEXT_CODE, "code": NEXT_CODE, "reset": NEXT_CODE}


def sealed(site: CheapSite) -> bytes:
    return dcrypt.seal(PublicKey.from_der(now(site).public_key), MESSAGE)


def opens(site: CheapSite, secret: Secret, kind: SlotKind, seal_number: int, mail: bytes) -> bool:
    """Whether this secret leads from the stores to the plaintext of this message."""
    record = now(site)
    seal = (record.seal, *record.closed)[seal_number]
    try:
        vault_key = site.accounts.open(record, secret, kind, seal=seal, frozen=True).vault_key
    except WrongSecret:
        return False
    keys = {k.public.key_id: k for k in site.accounts.private_keys(record, vault_key, seal)}

    def unwrap(header: dcrypt.Header) -> dcrypt.MessageKey:
        return dcrypt.unwrap(header, keys[header.key_id])

    try:
        return dcrypt.open_bytes(mail, unwrap) == MESSAGE
    except KeyError:
        return False


def check(site: CheapSite, operation: str, before: AccountRecord, mail: bytes) -> None:
    """All that the holder of a secret was told holds, and nothing is left half done."""
    record, done = now(site), now(site).epoch > before.epoch
    assert list(site.vaults.unfinished()) == []
    assert site.pins.epoch(record.account_id) == record.epoch
    was_reset = done and operation == "reset"
    password, code = SlotKind.PASSWORD, SlotKind.RECOVERY_CODE
    # Old mail opens with what opened it, or with what has taken its place.
    for secret in PASSWORDS.get(operation, (PASSWORD,)) if done and not was_reset else (PASSWORD,):
        assert opens(site, secret, password, was_reset, mail)
    right_code = CODES.get(operation, CODE) if done and not was_reset else CODE
    assert opens(site, right_code, code, was_reset, mail)
    fresh = sealed(site)
    for secret in PASSWORDS.get(operation, (PASSWORD,)) if done else (PASSWORD,):
        assert opens(site, secret, password, 0, fresh)
    # And what was taken away is gone.
    if done and operation in ("replace", "recover"):
        assert not opens(site, PASSWORD, password, 0, mail)
    if done and operation in ("recover", "code"):
        assert not opens(site, CODE, code, 0, mail)


def check_admin(site: CheapSite, operation: str) -> None:
    """A change of admin recovery that was cut short can be gone on with by the same call."""
    if operation == "forbid":
        site.admin.set_policy("forbidden")
        site.admin.withdraw()
        assert not now(site).admin_key
        return
    secrets = [ADMIN, NEW_ADMIN] if operation.startswith("admin") else [ADMIN]
    good = [secret for secret in secrets if accepted(site, secret)]
    assert good
    if operation == "admin key" and (site.admin.record().previous or good == [ADMIN]):
        site.admin.change_key(ADMIN, NEW_ADMIN)
        good = [NEW_ADMIN]
    record = now(site)
    if record.admin_key and not record.frozen:
        for seal in (record.seal, *record.closed):
            vault_key = site.admin.open(record, good[-1], "test", seal)
            assert site.accounts.private_keys(record, vault_key, seal)
    assert len(site.vaults.ids_of("admin")) == 1


def accepted(site: CheapSite, secret: Secret) -> bool:
    try:
        site.admin.check(secret)
    except WrongSecret:
        return False
    return True


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_step_of_any_operation_loses_nobody_a_secret_or_mail(
    site: CopiedSite, operation: str
) -> None:
    prepare(site)
    content, fired = site.content(), 0
    site.open()
    steps = ADMIN_STEPS if operation.startswith(("admin", "forbid")) else ()
    for step in (*STEPS, *steps):  # the end after a step is that before the next one
        site.put_back(content)
        before, mail, fault = now(site), sealed(site), Fault(step, done=False, crash=True)
        with pytest.MonkeyPatch.context() as patch:
            fault.arm(site, patch)
            try:
                OPERATIONS[operation](site)
            except Crash:
                fired += 1
        site.restart()
        check(site, operation, before, mail)
        check_admin(site, operation)
    assert fired >= 4


# ---- real processes


@pytest.mark.parametrize("operation", ["replace", "recover", "rotate", "join", "admin key"])
def test_a_process_that_ends_at_its_nth_commit_is_completed_by_the_next(
    site: CopiedSite, operation: str
) -> None:
    prepare(site)
    before, mail = now(site), sealed(site)
    site.close()
    key_file = site.root / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(site.key.text().reveal())
    subprocess.run([sys.executable, "-m", ending.__name__, site.root, operation], check=True)
    ended = sorted(path for path in site.root.iterdir() if path.is_dir())
    assert len(ended) > 4  # before each commit of three stores, and one that ran through
    for root in ended:  # the last one ran through
        left = CopiedSite(root, site.key)
        left.restart()
        check(left, operation, before, mail)
        check_admin(left, operation)
        assert now(left).epoch > before.epoch or root != ended[-1]
        left.close()
