"""From an address in RCPT to where and how its mail is stored.

The store's word is read anew for every recipient; only "encrypted" is kept, for two seconds at
most. "Plain" and "no such account" are never kept: a stale one would store plaintext for an
account that has just been encrypted. Whatever cannot be read or does not verify is temporary
trouble or an alarm, never "plain".
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeVar

from lmtp_atrest import dovecot
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import Kind, SignedRecord, SitePublic, State, check_pin
from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.replies import Refused
from lmtp_atrest.directory import Directory, Found
from lmtp_atrest.errors import Alarm, Damaged, NotFound, TemporaryFailure
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.mime import Certificates, NoUsableCertificate
from lmtp_atrest.names import Address, InvalidName, Names

T = TypeVar("T")
Key: TypeAlias = PublicKey | Certificates

KEEP_SECONDS = 2.0
KEEP_COUNT = 10_000
# For `unknown_recipients: deliver` only, where no directory names a home.


class Changed(TemporaryFailure):
    """The account changed while its message was on the way; the MTA's next try sees the change."""


class NoValidKey(Alarm):
    """A signed record says "encrypted" and holds no key that messages can be sealed to."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """An accepted recipient: where its mail goes and what it is encrypted to (None: plain)."""

    address: Address
    names: tuple[str, ...]
    maildir: Path
    inbox: Path
    folder: str | None
    account: SignedRecord | None
    key: Key | None
    pin_due: bool
    read_at: float

    @property
    def mailbox(self) -> str:
        """What tells mailboxes apart: the account's id, or the Maildir where there is none."""
        return self.account.record.account_id if self.account else str(self.maildir)


class Recipients:
    """Looks recipients up. Store and Maildir are asked in a thread of `executor`."""

    def __init__(
        self,
        config: Config,
        records: Records,
        site: SitePublic,
        directory: Directory,
        names: Names,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._records = records
        self._site = site
        self._directory = directory
        self._names = names
        self._executor = executor
        self._clock = clock
        self._kept: dict[Address, Recipient] = {}

    async def resolve(self, address: Address) -> Recipient:
        """The recipient, or Refused, TemporaryFailure, Alarm."""
        kept = self._kept.get(address)
        if kept is not None and self._clock() - kept.read_at <= KEEP_SECONDS:
            return kept
        try:
            full = self._names.canonical(address.name)
            base, detail = self._names.split_detail(address)
        except InvalidName as error:
            raise Refused(replies.MALFORMED_RECIPIENT) from error
        candidates: dict[str, str | None] = {full: None}
        if base != full:
            candidates[base] = detail
        found = await self._in_thread(lambda: self._of_account(address, candidates))
        if found is None:
            found = await self._of_directory(address, candidates)
        self._keep(address, found)
        return found

    async def _in_thread(self, look: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, look)

    def _keep(self, address: Address, found: Recipient) -> None:
        self._kept.pop(address, None)
        if found.key is not None:
            if len(self._kept) >= KEEP_COUNT:
                self._kept.clear()
            self._kept[address] = found

    def _of_account(self, address: Address, candidates: dict[str, str | None]) -> Recipient | None:
        read_at = self._clock()
        for name, folder in candidates.items():
            signed = self._records.by_name(name)
            if signed is not None:
                record = signed.record
                places = self._places(record.home, record.maildir)
                return self._checked(address, (name,), places, folder, signed, read_at)
        return None

    async def _of_directory(
        self, address: Address, candidates: dict[str, str | None]
    ) -> Recipient:
        for name, folder in candidates.items():
            user = await self._directory.lookup(name)
            if user is not None:
                return await self._of_user(address, candidates, user, folder)
        name, folder = list(candidates.items())[-1]
        return await self._of_user(address, candidates, self._unknown(name), folder)

    async def _of_user(
        self, address: Address, names: Iterable[str], user: Found, folder: str | None
    ) -> Recipient:
        """A user of the directory, whose own name may be that of an account of ours after all."""
        try:
            own = self._names.canonical(user.name)
        except InvalidName as error:
            message = f"the directory names a user {user.name!r}, which is no name"
            raise TemporaryFailure(message) from error
        found = await self._in_thread(lambda: self._of_account(address, {own: folder}))
        if found is not None:
            return found
        home = user.home or self._config.mail.home_of(own)
        if home is None or not home.startswith("/"):
            message = f"neither the directory nor mail.home gives a home for {own}"
            raise TemporaryFailure(message)
        named = dovecot.named_maildir(own, home, user.fields)
        places = self._places(home, named or self._config.mail.maildir(home))
        all_names = tuple(dict.fromkeys((*names, own)))
        read_at = self._clock()
        return await self._in_thread(
            lambda: self._checked(address, all_names, places, folder, None, read_at)
        )

    def _places(self, home: str, maildir: str) -> tuple[Path, Path]:
        return Path(maildir), Path(self._config.mail.inbox_of(home, maildir))

    def _unknown(self, name: str) -> Found:
        """What the site chose for an address that nobody knows."""
        match self._config.mail.unknown_recipients:
            case "reject":
                raise Refused(replies.NO_SUCH_RECIPIENT)
            case "defer":
                raise Refused(replies.NOT_KNOWN_NOW)
        if self._config.mail.home_of(name) is None:
            raise Refused(replies.NOT_KNOWN_NOW)
        return Found(name, home="")

    def _checked(
        self,
        address: Address,
        names: tuple[str, ...],
        places: tuple[Path, Path],
        folder: str | None,
        signed: SignedRecord | None,
        read_at: float,
    ) -> Recipient:
        pin = self._pin(places[0])
        # The same bytes have been verified a moment ago, and say the same.
        same = signed is not None and pin == signed.document
        due = not same and check_pin(signed, pin, self._site, self._records.by_id)
        key = _key(signed)
        return Recipient(address, names, *places, folder, signed, key, due, read_at)

    def _pin(self, path: Path) -> bytes | None:
        try:
            with Maildir.open(self._config.mail.root, path, create=False) as maildir:
                return maildir.pin()
        except NotFound:
            return None

    def is_usable(self, recipient: Recipient) -> bool:
        """Whether the recipient is encrypted and was read a short time ago."""
        young = self._clock() - recipient.read_at <= KEEP_SECONDS
        return young and recipient.key is not None

    def fresh(self, recipient: Recipient) -> Recipient:
        """The recipient itself while its answer may be used, else read again. In a thread."""
        return recipient if self.is_usable(recipient) else self.again(recipient)

    def again(self, recipient: Recipient) -> Recipient:
        """Read the store again, in a thread. Raises Changed where it is another account now."""
        read_at = self._clock()
        found = (self._records.by_name(name) for name in recipient.names)
        signed = next((one for one in found if one is not None), None)
        if _account_id(signed) != _account_id(recipient.account):
            message = "the name belongs to another account now"
            raise Changed(message)
        old, places = recipient, (recipient.maildir, recipient.inbox)
        if signed is not None:
            places = self._places(signed.record.home, signed.record.maildir)
        return self._checked(old.address, old.names, places, old.folder, signed, read_at)

    def still_plain(self, recipient: Recipient) -> "PlainWindow":
        """The last look before a plain message counts, and how long it holds."""
        return PlainWindow(self, recipient, self._clock)


class PlainWindow:
    """A plain message may only appear within two seconds after the store said "plain".

    `enable` waits five seconds after its commit, so whoever read the store before that commit is
    done, or undone, when `enable` returns.
    """

    def __init__(
        self, recipients: Recipients, recipient: Recipient, clock: Callable[[], float]
    ) -> None:
        self._recipients = recipients
        self._recipient = recipient
        self._clock = clock
        self._read_at = float("-inf")

    def look(self) -> None:
        """Before the rename: read the store. Raises Changed, TemporaryFailure, Alarm."""
        now = self._recipients.again(self._recipient)
        if now.key is not None or now.maildir != self._recipient.maildir:
            message = "the account was encrypted while its message was on the way"
            raise Changed(message)
        self._read_at = now.read_at

    def close(self) -> None:
        """After the rename: raises Changed where it came too late."""
        if self._clock() - self._read_at > KEEP_SECONDS:
            message = "more than 2 s between the look at the store and the rename"
            raise Changed(message)


_read_key = lru_cache(1024)(PublicKey.from_der)


def _key(signed: SignedRecord | None) -> Key | None:
    if signed is None or signed.record.state is not State.ENCRYPTED:
        return None
    try:
        if signed.record.kind is Kind.MAIL_CRYPT:
            return _read_key(signed.record.public_key)
        certificates = Certificates(signed.record.kind, signed.record.certificates)
        certificates.usable(datetime.now(UTC))
    except Damaged as error:
        message = f"account {signed.record.account_id} is encrypted and has no usable public key"
        raise NoValidKey(message) from error
    except NoUsableCertificate as error:
        message = f"account {signed.record.account_id}: {error}"
        raise NoValidKey(message) from error
    return certificates


def _account_id(signed: SignedRecord | None) -> str | None:
    return signed.record.account_id if signed else None
