"""A site as a whole: made once, its schema upgraded, its keys changed, its stores restored.

All of this works with the services stopped. It never touches a vault's content: records are signed
anew, as they are.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from lmtp_atrest import users
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import AccountRecord, AdminRecord, SiteKey, SitePublic
from lmtp_atrest.crypto.slots import digest_of
from lmtp_atrest.errors import AtRestError, ConfigError, UsageError
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.store import PINS, RECORDS, VAULTS, Store
from lmtp_atrest.keystore.vaults import Vaults


@dataclass(frozen=True, slots=True)
class Stores:
    """The three stores, opened to write."""

    records: Store
    vaults: Store
    pins: Store

    def __iter__(self) -> Iterator[Store]:
        return iter((self.records, self.vaults, self.pins))

    def check_revisions(self) -> None:
        """WrongRevision unless all have the schema that this program knows."""
        for store in self:
            store.check_revision()


@contextmanager
def stores(config: Config) -> Iterator[Stores]:
    """The stores that the configuration names; closed at the end, their WAL written back."""
    opened = Stores(
        Store(RECORDS, config.keystore.records),
        Store(VAULTS, config.keystore.vaults),
        Store(PINS, config.keystore.pins),
    )
    try:
        yield opened
    finally:
        for store in opened:
            store.close()


def initialise(config: Config) -> list[Path]:
    """Make directories, site key and stores where they are missing; returns what was made.

    Nothing that exists loses its content. Made as root, everything belongs to the users that the
    configuration names, also where they were named only after a first run; records are readable
    by the group of the delivery user. ConfigError where the site key is lost.
    """
    with stores(config) as opened:
        return _initialise(config, opened)


def _initialise(config: Config, opened: Stores) -> list[Path]:
    unlock, lmtp = _user(config.unlock.user), _user(config.lmtp.user)
    ours = tuple(store.path.name for store in opened)
    places = [
        _Place(config.site.key.parent, 0o755),
        # Only here: later a missing mail root may be a disk that is not mounted.
        _Place(config.mail.root, 0o750, lmtp),
        _Place(opened.records.path.parent, 0o750, unlock, lmtp, ours),
        _Place(opened.vaults.path.parent, 0o700, unlock, None, ours),
        _Place(opened.pins.path.parent, 0o700, unlock, None, ours),
        _Place(_conversion_directory(config), 0o700, lmtp, None, (*ours, "conversion.db")),
    ]
    _check_site_key(config, opened)
    # Of two stores in one directory, the first says whose it is.
    distinct = {place.path: place for place in reversed(places)}
    made = [place.path for place in reversed(distinct.values()) if place.make()]
    made += _make_site_key(config, unlock)
    for store in opened:
        if not store.path.exists():
            made.append(store.path)
        store.upgrade()
    _own(opened.records.path, 0o640, unlock, lmtp)
    for store in (opened.vaults, opened.pins):
        _own(store.path, 0o600, unlock)
    records = Records(opened.records, SitePublic.load(config.site.public))
    if records.admin() is None:
        site_key = SiteKey.load(config.site.key)
        first = AdminRecord(site_key.site_id, 1, "allowed")
        records.put_admin(first.epoch, site_key.sign_admin(first))
    return made


def _conversion_directory(config: Config) -> Path:
    return Path(config.conversion.state.removeprefix("sqlite:///")).parent


def enrolment_fault(config: Config) -> str | None:
    """Why at-login enrols nobody as things are, though the file says so; else None."""
    if config.atrest.enrolment != "at-login" or config.atrest.at_login_without_recovery:
        return None
    store = Store(RECORDS, config.keystore.records, readonly=True)
    try:
        admin = Records(store, SitePublic.load(config.site.public)).admin()
    except AtRestError as error:
        return (
            f"atrest.enrolment: at-login needs admin recovery, which cannot be looked at: {error}"
        )
    finally:
        store.close()
    if admin is None or admin.key is None:
        return (
            "atrest.enrolment: at-login enrols nobody before `lmtp-atrest admin-recovery set`, or "
            "with atrest.at_login_without_recovery: accepted"
        )
    return None


def upgrade(config: Config) -> list[tuple[str, str | None, str]]:
    """Bring the stores to this program's schema: name, revision before, revision now."""
    report = []
    with stores(config) as opened:
        for store in opened:
            before = store.revision()
            store.upgrade()
            report.append((store.kind.name, before, store.kind.revision))
    return report


def add_site_key(config: Config) -> str:
    """One more signing key, which signs from now on; returns its id."""
    site_key = SiteKey.load(config.site.key).with_new_key()
    # The public half first: whoever reads a record by the new key must know it already.
    _write_public(config, site_key.public)
    _write(config.site.key, site_key.text().reveal(), 0o600)
    return site_key.public.key_names[-1]


def resign(config: Config) -> int:
    """Sign every record with the newest key; returns how many were signed anew."""
    site_key, count = SiteKey.load(config.site.key), 0
    with stores(config) as opened:
        records, pins = Records(opened.records, site_key.public), Pins(opened.pins)
        _check_finished(opened)
        for signed in records.all():
            again = site_key.sign(signed.record)
            if again.document != signed.document:
                records.put(again)  # compared and set: unlock may run after all
                pins.remember(again)
                count += 1
        admin = records.admin()
        if admin is not None:
            document = site_key.sign_admin(admin)
            records.put_admin(admin.epoch, document)
            pins.remember_admin(admin.epoch, document)
    return count


def retire_site_keys(config: Config) -> tuple[str, ...]:
    """Forget all signing keys but the newest; UsageError while a record still needs one."""
    site_key = SiteKey.load(config.site.key)
    newest = site_key.only_newest()
    with stores(config) as opened:
        _check_finished(opened)
        records = Records(opened.records, site_key.public)
        needed = sum(newest.sign(s.record).document != s.document for s in records.all())
        admin = records.admin()
        if admin is not None:
            needed += newest.sign_admin(admin) != records.admin_document()
    if needed:
        message = f"{needed} records are signed by an older key: site-key resign"
        raise UsageError(message)
    _write(config.site.key, newest.text().reveal(), 0o600)
    _write_public(config, newest.public)
    kept = newest.public.key_names
    return tuple(name for name in site_key.public.key_names if name not in kept)


def _check_finished(opened: Stores) -> None:
    """UsageError while the outbox holds a record: its signature must count when unlock starts."""
    if next(Vaults(opened.vaults).unfinished(), None) is not None:
        message = "a change was cut short: start unlock once, which completes it, and stop it"
        raise UsageError(message)


class Fate(StrEnum):
    """What accepting a restore does to an account."""

    RECORD_RETURNS = "its vault is intact: the newest record comes back, nothing is lost"
    AS_IN_BACKUP = "record and vault are those of the backup: its passwords and keys count again"
    FORGOTTEN = "neither store knows it: mail encrypted to it stays closed, its name is free"
    VAULT_RETURNS = "only its epoch is older: its vault is that of the record, nothing is lost"
    VAULT_TOO_OLD = "its vault is older than its record and stays closed: restore a newer vaults"


@dataclass(frozen=True, slots=True)
class Restored:
    """An account that unlock has seen newer than the stores have it."""

    seen: AccountRecord
    found: AccountRecord | None
    fate: Fate


def restored_accounts(config: Config) -> list[Restored]:
    """What `accept_restore` would do, account by account."""
    site_public, restored = SitePublic.load(config.site.public), []
    with stores(config) as opened:
        records, vaults = Records(opened.records, site_public), Vaults(opened.vaults)
        for document in Pins(opened.pins).documents():
            seen = site_public.verify(document).record
            signed = records.by_id(seen.account_id)
            if signed is not None and signed.record.epoch >= seen.epoch:
                if (vaults.epoch(seen.account_id) or 0) < signed.record.epoch:
                    restored.append(_older_vault(seen, signed.record, vaults))
                continue
            if vaults.epoch(seen.account_id) == seen.epoch:
                fate = Fate.RECORD_RETURNS
            else:
                fate = Fate.AS_IN_BACKUP if signed else Fate.FORGOTTEN
            restored.append(Restored(seen, signed.record if signed else None, fate))
    return restored


def _older_vault(seen: AccountRecord, record: AccountRecord, vaults: Vaults) -> Restored:
    vault = vaults.get(record.vault_id)
    slots = digest_of(vault.slots) if vault else b""
    fits = slots == record.slots_digest
    return Restored(seen, record, Fate.VAULT_RETURNS if fits else Fate.VAULT_TOO_OLD)


def restored_admin(config: Config) -> bool:
    """Whether the admin record is older than the one that unlock has seen, or gone."""
    with stores(config) as opened:
        return _older_admin(opened, SitePublic.load(config.site.public)) is not None


def _older_admin(opened: Stores, site_public: SitePublic) -> tuple[int, bytes] | None:
    """Epoch and document of the admin record that was seen, where the store has an older one."""
    found, seen = Records(opened.records, site_public).admin(), Pins(opened.pins).admin()
    if seen is None or (found is not None and found.epoch >= seen[0]):
        return None
    return seen


def _accept_admin(opened: Stores, site_key: SiteKey) -> None:
    """The admin record that was seen comes back where its key's vault is still there.

    Else the older record counts, at a higher epoch: its password, of then, opens what it opened.
    """
    seen = _older_admin(opened, site_key.public)
    if seen is None:
        return
    records, pins = Records(opened.records, site_key.public), Pins(opened.pins)
    vaults = Vaults(opened.vaults)
    newest, found = site_key.public.verify_admin(seen[1]), records.admin()
    keys = [key for key in (newest.key, newest.previous) if key is not None]
    if found is not None and any(vaults.get(key.vault.vault_id) is None for key in keys):
        newest = replace(found, epoch=seen[0] + 1)
    document = site_key.sign_admin(newest)
    records.replace_admin(newest.epoch, document)
    pins.remember_admin(newest.epoch, document)


def accept_restore(config: Config) -> list[Restored]:
    """Let restored stores count; returns what was done, account by account.

    A Maildir of a forgotten account still refuses mail, by its pin, until an account is added.
    """
    site_key, restored = SiteKey.load(config.site.key), restored_accounts(config)
    with stores(config) as opened:
        records, pins = Records(opened.records, site_key.public), Pins(opened.pins)
        vaults = Vaults(opened.vaults)
        _accept_admin(opened, site_key)
        for item in restored:
            if item.fate is Fate.VAULT_TOO_OLD:
                continue
            if item.fate is Fate.RECORD_RETURNS:
                records.replace(site_key.sign(item.seen))
            elif item.fate is Fate.VAULT_RETURNS and item.found is not None:
                vaults.set_epoch(item.seen.account_id, item.found.epoch)
            elif item.found is not None:
                again = site_key.sign(replace(item.found, epoch=item.seen.epoch + 1))
                vaults.set_epoch(item.seen.account_id, again.record.epoch)
                records.replace(again)
                pins.remember(again)
            else:
                pins.forget(item.seen.account_id)
    return restored


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    mode: int
    owner: pwd.struct_passwd | None = None
    group: pwd.struct_passwd | None = None
    holds: tuple[str, ...] = ()

    def make(self) -> bool:
        if not self.path.exists():
            make_directory(self.path, self.mode)
            _own(self.path, self.mode, self.owner, self.group)
            return True
        if self._of_an_earlier_init():
            _own(self.path, self.path.stat().st_mode & 0o7777, self.owner, self.group)
        return False

    def _of_an_earlier_init(self) -> bool:
        """Root's, and with nothing in it but what we put there: never /var/lib, nor old mail."""
        return self.path.stat().st_uid == 0 and all(
            entry.name.startswith(self.holds or ("\0",)) for entry in self.path.iterdir()
        )


def make_directory(path: Path, mode: int) -> None:
    """A directory of this mode; missing ones above it are open to all, whatever the umask is."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)
    path.mkdir()
    path.chmod(mode)


def _user(name: str | None) -> pwd.struct_passwd | None:
    return None if name is None else users.find(name)


def _own(
    path: Path,
    mode: int,
    owner: pwd.struct_passwd | None,
    group: pwd.struct_passwd | None = None,
) -> None:
    entry = group or owner
    if entry is not None and os.geteuid() == 0:
        os.chown(path, owner.pw_uid if owner else 0, entry.pw_gid)
    path.chmod(mode)


def _check_site_key(config: Config, opened: Stores) -> None:
    """A lost key is never replaced by a new one: every record would be a forgery then."""
    witnesses = [config.site.public, *(store.path for store in opened)]
    found = next((path for path in witnesses if path.exists()), None)
    if found is not None and not config.site.key.exists():
        raise ConfigError(
            [f"{config.site.key} is missing, but {found} is there: put the key's copy back"]
        )


def _make_site_key(config: Config, owner: pwd.struct_passwd | None) -> list[Path]:
    if config.site.key.exists():
        if owner is not None and config.site.key.stat().st_uid == 0:
            _own(config.site.key, 0o600, owner)
        if config.site.public.exists():
            return []
        _write_public(config, SiteKey.load(config.site.key).public)
        return [config.site.public]
    site_key = SiteKey.generate()
    _write(config.site.key, site_key.text().reveal(), 0o600)
    _own(config.site.key, 0o600, owner)
    _write_public(config, site_key.public)
    return [config.site.key, config.site.public]


def _write_public(config: Config, public: SitePublic) -> None:
    _write(config.site.public, public.text().encode(), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file as a whole and durably, owner kept: a lost site key cannot be made again."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists() and os.geteuid() == 0:
        os.chown(beside, path.stat().st_uid, path.stat().st_gid)
    beside.chmod(mode)
    beside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
