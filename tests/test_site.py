import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmtp_atrest import site as site_module
from lmtp_atrest.accounts import Accounts, AdminRecovery, Generations
from lmtp_atrest.config import AtRest, Config, parse
from lmtp_atrest.crypto.records import BadDocument, SiteKey, SitePublic, State
from lmtp_atrest.errors import Alarm, ConfigError, UsageError
from lmtp_atrest.keystore.audit import Audit
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import Vaults
from lmtp_atrest.secret import Secret
from lmtp_atrest.site import Fate
from tests.sites import CHEAP, PASSWORD

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = parse(f"""
        mail: {{root: {tmp_path}/mail}}
        site: {{key: {tmp_path}/etc/site.key, public: {tmp_path}/etc/site.pub}}
        keystore:
          records: sqlite:///{tmp_path}/lib/records/records.db
          vaults: sqlite:///{tmp_path}/lib/vaults/vaults.db
          pins: sqlite:///{tmp_path}/lib/vaults/pins.db
    """)
    site_module.initialise(made)
    return made


@contextmanager
def accounts(config: Config) -> Iterator[Accounts]:
    with site_module.stores(config) as opened:
        key = SiteKey.load(config.site.key)
        records = Records(opened.records, key.public)
        yield Accounts(records, Vaults(opened.vaults), Pins(opened.pins), key, CHEAP)


def test_init_makes_what_is_missing_once_and_closed_to_others(
    config: Config, tmp_path: Path
) -> None:
    modes = {
        "mail": 0o750,
        "etc/site.key": 0o600,
        "etc/site.pub": 0o644,
        "lib/records": 0o750,
        "lib/records/records.db": 0o640,
        "lib/vaults": 0o700,
        "lib/vaults/vaults.db": 0o600,
        "lib/vaults/pins.db": 0o600,
    }
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in modes} == modes
    before = config.site.key.read_bytes()
    assert site_module.initialise(config) == []
    assert config.site.key.read_bytes() == before
    with site_module.stores(config) as opened:
        opened.check_revisions()
        admin = Records(opened.records, SitePublic.load(config.site.public)).admin()
    assert admin is not None
    assert admin.policy == "allowed"


def test_init_names_a_user_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adduser"):
        site_module.initialise(parse("unlock: {user: no-such-user-here}"))


def test_upgrade_reports_each_store(config: Config) -> None:
    report = site_module.upgrade(config)
    assert [(name, before == after) for name, before, after in report] == [
        ("records", True), ("vaults", True), ("pins", True)
    ]  # fmt: skip


def test_a_signing_key_is_added_used_and_the_old_one_retired(config: Config) -> None:
    with accounts(config) as before:
        before.add([ALICE], "/h", "/h/Maildir")
        before.enable(ALICE, PASSWORD)
    old_public = SitePublic.load(config.site.public)
    name = site_module.add_site_key(config)
    with admin_recovery(config) as recovery:
        key = recovery.record().key  # which pins the record as it was signed
    with pytest.raises(UsageError, match="2 records are signed by an older key"):
        site_module.retire_site_keys(config)
    assert site_module.resign(config) == 1
    assert site_module.resign(config) == 0
    assert site_module.retire_site_keys(config) == old_public.key_names
    now = SitePublic.load(config.site.public)
    assert now.key_names == (name,)
    with admin_recovery(config) as recovery:
        assert recovery.record().key == key
    assert stat.S_IMODE(config.site.key.stat().st_mode) == 0o600
    with accounts(config) as after:
        record = after.record(ALICE)
        assert record is not None
        assert after.open(record, PASSWORD).slot.kind == "password"
    with site_module.stores(config) as opened:
        signed = Records(opened.records, now).by_name(ALICE)
    assert signed is not None
    with pytest.raises(BadDocument):
        old_public.verify(signed.document)


@contextmanager
def admin_recovery(config: Config) -> Iterator[AdminRecovery]:
    with accounts(config) as opened:
        yield AdminRecovery(opened, Audit(opened.vaults.store))


@pytest.mark.parametrize(
    ("which", "password"), [(("records",), b"second"), (("records", "vaults"), b"first")]
)
def test_an_older_admin_record_counts_again_only_when_accepted(
    config: Config, which: tuple[str, ...], password: bytes
) -> None:
    """With the newest vaults the newest key comes back, else the one of the backup."""
    with site_module.stores(config) as opened:
        paths = [getattr(opened, name).path for name in which]
    with admin_recovery(config) as recovery:
        recovery.set(Secret(b"first"))
    saved = [path.read_bytes() for path in paths]
    with admin_recovery(config) as recovery:
        recovery.change_password(Secret(b"first"), Secret(b"second"))
    assert not site_module.restored_admin(config)
    for path, content in zip(paths, saved, strict=True):
        path.write_bytes(content)
    assert site_module.restored_admin(config)
    with admin_recovery(config) as refused, pytest.raises(Alarm):
        refused.record()
    assert site_module.accept_restore(config) == []
    assert not site_module.restored_admin(config)
    with admin_recovery(config) as recovery:
        recovery.check(Secret(password))
        recovery.change_password(Secret(password), Secret(b"third"))


def test_enrolment_at_login_waits_for_a_way_back(config: Config) -> None:
    wanted = config.model_copy(update={"atrest": AtRest(enrolment="at-login")})
    assert site_module.enrolment_fault(config) is None
    assert "admin-recovery set" in (site_module.enrolment_fault(wanted) or "")
    with admin_recovery(config) as recovery:
        recovery.set(PASSWORD)
    assert site_module.enrolment_fault(wanted) is None
    config.site.public.unlink()
    assert "cannot be looked at" in (site_module.enrolment_fault(wanted) or "")
    accepted = AtRest(enrolment="at-login", at_login_without_recovery="accepted")
    assert site_module.enrolment_fault(config.model_copy(update={"atrest": accepted})) is None


@pytest.mark.parametrize("which", ["records", "both"])
def test_a_restored_store_counts_again_only_when_accepted(config: Config, which: str) -> None:
    with site_module.stores(config) as opened:
        paths = [opened.records.path, opened.vaults.path][: 1 if which == "records" else 2]
    with accounts(config) as first:
        first.add([ALICE], "/h", "/h/Maildir")
        record = first.enable(ALICE, PASSWORD)
    saved = [path.read_bytes() for path in paths]
    with accounts(config) as second:
        newest = Generations(second).rekey(record, second.open(record, PASSWORD).vault_key)[0]
        second.add([BOB], "/b", "/b/Maildir")
    for path, content in zip(paths, saved, strict=True):
        path.write_bytes(content)
    with accounts(config) as refused:
        for name, complaint in ((ALICE, "rollback"), (BOB, "no record for a name")):
            with pytest.raises(Alarm, match=complaint):
                refused.record(name)
    fates = {item.seen.names[0]: item.fate for item in site_module.accept_restore(config)}
    assert site_module.accept_restore(config) == []
    with accounts(config) as again:
        back, bob = again.record(ALICE), again.record(BOB)
        assert back is not None
        assert again.open(back, PASSWORD).slot.kind == "password"
        assert again.rename(ALICE, "alicia@example.org").epoch == back.epoch + 1
    if which == "records":
        assert set(fates.values()) == {Fate.RECORD_RETURNS}
        assert back == newest
        assert bob is not None
    else:
        assert fates == {ALICE: Fate.AS_IN_BACKUP, BOB: Fate.FORGOTTEN}
        assert (back.state, back.key_ids) == (State.ENCRYPTED, record.key_ids)
        assert back.epoch > newest.epoch
        assert bob is None


def test_a_vaults_store_from_before_a_mere_change_of_names_loses_nothing(config: Config) -> None:
    with site_module.stores(config) as opened:
        path = opened.vaults.path
    with accounts(config) as first:
        first.add([ALICE], "/h", "/h/Maildir")
        first.enable(ALICE, PASSWORD)
    saved = path.read_bytes()
    with accounts(config) as second:
        second.alias_add(ALICE, BOB)
    path.write_bytes(saved)
    fates = [item.fate for item in site_module.accept_restore(config)]
    assert fates == [Fate.VAULT_RETURNS]
    with accounts(config) as again:
        record = again.record(BOB)
        assert record is not None
        assert again.open(record, PASSWORD).slot.kind == "password"
        assert again.alias_remove(ALICE, BOB).epoch == record.epoch + 1


def test_a_vaults_store_from_before_a_rekey_stays_closed_until_a_newer_one_is_back(
    config: Config,
) -> None:
    with site_module.stores(config) as opened:
        path = opened.vaults.path
    with accounts(config) as first:
        first.add([ALICE], "/h", "/h/Maildir")
        record = first.enable(ALICE, PASSWORD)
    saved = path.read_bytes()
    with accounts(config) as second:
        Generations(second).rekey(record, second.open(record, PASSWORD).vault_key)
    newest = path.read_bytes()
    path.write_bytes(saved)
    assert [item.fate for item in site_module.accept_restore(config)] == [Fate.VAULT_TOO_OLD]
    path.write_bytes(newest)
    assert site_module.accept_restore(config) == []
    with accounts(config) as again:
        back = again.record(ALICE)
        assert back is not None
        assert again.open(back, PASSWORD).slot.kind == "password"


def test_a_lost_site_key_is_never_replaced(config: Config) -> None:
    config.site.key.rename(config.site.key.with_suffix(".away"))
    with pytest.raises(ConfigError, match="put the key's copy back"):
        site_module.initialise(config)
    assert not config.site.key.exists()
    config.site.key.with_suffix(".away").rename(config.site.key)
    config.site.public.unlink()
    assert site_module.initialise(config) == [config.site.public]


def test_keys_are_not_changed_while_a_change_is_cut_short(config: Config) -> None:
    with accounts(config) as first:
        record = first.add([ALICE], "/h", "/h/Maildir")
        first.vaults.change(first.site_key.sign(record.next(names=(BOB,))))
    for change in (site_module.resign, site_module.retire_site_keys):
        with pytest.raises(UsageError, match="start unlock once"):
            change(config)
    with accounts(config) as again:
        again.repair()
        assert again.record(BOB) is not None
    assert site_module.resign(config) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to other users")
def test_users_named_after_a_first_init_get_what_it_made(config: Config, tmp_path: Path) -> None:
    settings = config.model_dump(mode="json")
    settings["lmtp"]["user"], settings["unlock"]["user"] = "mail", "daemon"
    site_module.initialise(parse(json.dumps(settings)))
    owners = {
        name: ((tmp_path / name).owner(), (tmp_path / name).group())
        for name in ("etc/site.key", "lib/records", "lib/records/records.db", "lib/vaults")
    }
    assert owners == {
        "etc/site.key": ("daemon", "daemon"),
        "lib/records": ("daemon", "mail"),
        "lib/records/records.db": ("daemon", "mail"),
        "lib/vaults": ("daemon", "daemon"),
    }
