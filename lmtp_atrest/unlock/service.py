"""What the reader socket does, and what all sockets share: from requests to replies.

Keys leave only from here and from `logins.py`, and only after the account's record was read from
the primary store for this very request.
"""

import asyncio
import base64
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from lmtp_atrest.accounts import Accounts, handout
from lmtp_atrest.config import Config
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt import parse_header
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import (
    Alarm,
    AtRestError,
    BadCode,
    Busy,
    Conflict,
    Damaged,
    NotFound,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.keystore.activity import DAY_MS, OPENED, Activity, Event
from lmtp_atrest.names import InvalidName, Names
from lmtp_atrest.telemetry import alarm, logger
from lmtp_atrest.unlock.evict import Evictor
from lmtp_atrest.unlock.opening import KdfPool, Opener, Settle, Try
from lmtp_atrest.unlock.outbox import Outbox
from lmtp_atrest.unlock.owners import check_own
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    Keys,
    Lock,
    Open,
    Renew,
    Request,
    Role,
    Unwrap,
)
from lmtp_atrest.unlock.vaults import NoSession, OpenVault, OpenVaults

log = logger("unlock")

REFUSED_TOO_MANY_KEYS = (
    "This account has more keys than a login can carry: ask your administrator."
)


NOTED_LIMIT = 50_000


class TooManyKeys(AtRestError):
    """The private keys of an account do not fit one reply of Dovecot's auth worker."""


class Service:
    """The operations of the reader socket; others of this package add theirs."""

    def __init__(
        self,
        config: Config,
        accounts: Accounts,
        evictor: Evictor,
        *,
        notices: Outbox,
        settle: Settle,
        pool: KdfPool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config.unlock
        self.dovecot_delivers = config.mail.delivered_by == "dovecot"
        self.directory_is_ours = config.directory.source == "keystore"
        self.accounts = accounts
        self.evictor = evictor
        self._notices = notices
        self._activity = Activity(accounts.vaults.store)
        self._noted_today: set[tuple[str, int, str, str]] = set()
        self.names = Names(config.names, config.lmtp.recipient_delimiter)
        self.now = now
        self.pool = pool or KdfPool()
        self.vaults = OpenVaults(self.config.session.idle, self.config.session.age)
        self.opener = Opener(
            accounts, self.vaults, self.pool, self.config.trusted_sources, now, settle
        )
        self._operations: dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]] = {
            Open: self._open,
            Keys: self._keys,
            Unwrap: self._unwrap,
            Renew: self._renew,
            Lock: self._lock,
        }

    def add_operations(
        self, operations: dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]
    ) -> None:
        """Take over the operations of another part of the service."""
        self._operations |= operations

    async def answer(self, request: Request, peer: Peer) -> Reply:
        """The one reply to a request; never raises, whatever happens."""
        try:
            if peer.role is Role.PORTAL:
                check_own(request)
            return await self._operations[type(request)](request, peer)
        except AtRestError as error:
            return failure(error, request, peer)
        except Exception as error:
            # Neither the text nor the values: either may hold what the request held.
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "unexpected",
                op=type(request).__name__,
                error=type(error).__name__,
                where=f"{where.filename}:{where.lineno}",
            )
            return Reply("temporary-failure")

    async def expire(self) -> None:
        """Close what is too old; at the age limit end the readers as well."""
        for vault in self.vaults.expire(self.now()):
            log.info("vault reached its age", account=vault.account_id)
            await self.evictor.end(vault.names, vault.account_id)

    async def forget_unused_caches(self) -> None:
        """Remove what lies in RAM of accounts whose vault is closed and that nobody is in."""
        if self.config.cache == "ram":
            await self.evictor.forget_unused(self._names_if_closed)

    async def _names_if_closed(self, account_id: str) -> tuple[str, ...] | None:
        if self.vaults.is_open(account_id, self.now()):
            return None
        try:
            record = await asyncio.to_thread(self.accounts.record_by_id, account_id)
        except Alarm as error:
            # Whose cache it is cannot be told; to lose one costs a session some seconds.
            alarm("unlock", "cache of an account that does not verify", cause=str(error))
            return ()
        return record.names if record else ()

    def wipe(self) -> None:
        """Forget all vault keys and marks, at the end of the process."""
        self.vaults.wipe()
        self.opener.wipe()
        self.pool.close()

    async def record(self, name: str) -> AccountRecord | None:
        """The account of a name as a peer spells it, fresh from the primary store."""
        try:
            canonical = self.names.canonical(name)
            canonical.encode()  # lone surrogates: bytes that were no UTF-8
        except (InvalidName, UnicodeEncodeError):
            return None
        return await asyncio.to_thread(self.accounts.record, canonical)

    async def settled(self, record: AccountRecord, vault: OpenVault) -> AccountRecord:
        """The record that this open vault belongs to: opening it may have changed the account."""
        if vault.epoch == record.epoch:
            return record
        after = await asyncio.to_thread(self.accounts.record_by_id, record.account_id)
        if after is None or after.epoch != vault.epoch:
            message = f"account {record.account_id} changed while its vault was opened"
            raise Conflict(message)
        if after.admin_key and not record.admin_key:
            await self.tell(after, "admin-slot")
        return after

    async def tell(self, record: AccountRecord, kind: str, quiet: int = 0) -> None:
        """Have a notice sent to the account's owner; never fails what it tells of.

        `quiet`: milliseconds in which the same notice is not sent again.
        """
        await self.note(record, kind, daily=quiet > 0)
        await asyncio.to_thread(self._notices.add, record, kind, quiet)

    async def note(
        self, record: AccountRecord, event: str, client: str = "", *, daily: bool = False
    ) -> None:
        """Have it shown to the account's owner what happened; never fails what it notes."""
        now = self.accounts.milliseconds()
        if daily:
            key = record.account_id, now // DAY_MS, event, client
            if key in self._noted_today:
                return
            if len(self._noted_today) >= NOTED_LIMIT:
                self._noted_today.clear()
            self._noted_today.add(key)
        try:
            await asyncio.to_thread(
                self._activity.add, record.account_id, event, now, client, daily=daily
            )
        except AtRestError as error:
            log.error("activity not noted", cause=str(error))

    async def happened(self, account_id: str) -> list[Event]:
        """What was noted of an account, newest first."""
        return await asyncio.to_thread(self._activity.of, account_id)

    async def happened_last(self, account_id: str, event: str) -> int | None:
        """When this happened last, in milliseconds since 1970."""
        return await asyncio.to_thread(self._activity.last, account_id, event)

    # ---- reader

    async def _open(self, request: Open, peer: Peer) -> Reply:
        record = await self.record(request.name)
        if record is None or not record.holds_ciphertext:
            if peer.role is Role.ADMIN and record is not None:
                return Reply("not-enrolled")
            # On the reader socket a plain account looks like none, and none like a wrong secret.
            record = self.opener.nobody(request.name)
        vault = await self.opener.open(Try(record, request.secret, request.source))
        record = await self.settled(record, vault)
        log.info("opened for a reader", account=record.account_id, uid=peer.uid)
        await self.note(record, OPENED, client_of("reader", request.source), daily=True)
        return Reply(
            "opened",
            {
                "token": self.vaults.issue(vault, peer.uid),
                "account": record.account_id,
                "key_ids": list(record.key_ids),
                "expires": self.vaults.expires(vault, self.now()),
            },
        )

    async def _session(self, token: str, peer: Peer) -> tuple[AccountRecord, OpenVault]:
        """The open vault of a token and its record, read for this use; NoSession."""
        vault = self.vaults.by_token(token, peer.uid, self.now())
        record = await asyncio.to_thread(self.accounts.record_by_id, vault.account_id)
        if record is None:
            self.vaults.close(vault.account_id)
        elif self.vaults.current(record, self.now()) is vault:
            self.vaults.use(vault, self.now())
            return record, vault
        message = "the account changed or the vault was closed"
        raise NoSession(message)

    async def _keys(self, request: Keys, peer: Peer) -> Reply:
        record, vault = await self._session(request.token, peer)
        keys = await asyncio.to_thread(self._reader_keys, record, vault)
        log.info("keys for a reader", account=record.account_id, uid=peer.uid, keys=len(keys))
        return Reply("keys", {"keys": keys})

    def _reader_keys(self, record: AccountRecord, vault: OpenVault) -> list[dict[str, str]]:
        keys = []
        for key in self.accounts.private_keys(record, vault.vault_key):
            pem, password = handout.one_time(key)
            keys.append({"key_id": key.key_id.hex(), "private_key": pem, "password": password})
        return keys

    async def _unwrap(self, request: Unwrap, peer: Peer) -> Reply:
        record, vault = await self._session(request.token, peer)
        return await asyncio.to_thread(self.unwrapped, record, vault.vault_key, request.header)

    def unwrapped(
        self, record: AccountRecord, vault_key: VaultKey, raw: bytes, *, check_digest: bool = True
    ) -> Reply:
        """The key of the message with this header, as `unwrap` answers it; blocks.

        Without `check_digest` the message's tag alone proves the key, a fifth faster.
        """
        try:
            header = parse_header(raw)
        except Damaged:
            return Reply("damaged")
        keys = self.accounts.private_keys(record, vault_key)
        key = next((key for key in keys if key.key_id == header.key_id), None)
        if key is None:
            return Reply("no-such-key")
        try:
            message_key = dcrypt.unwrap(header, key, check_digest=check_digest)
        except Damaged:
            return Reply("damaged")
        return Reply("unwrapped", {"key": _base64(message_key.secret.reveal())})

    async def _renew(self, request: Renew, peer: Peer) -> Reply:
        _record, vault = await self._session(request.token, peer)
        return Reply("renewed", {"expires": self.vaults.expires(vault, self.now())})

    async def _lock(self, request: Lock, peer: Peer) -> Reply:
        vault = self.vaults.by_token(request.token, peer.uid, self.now())
        return await self.locked(vault.account_id, vault.names)

    async def locked(self, account_id: str, names: tuple[str, ...]) -> Reply:
        """Close the account's vault at once, then have its readers ended."""
        closed = self.vaults.close(account_id)
        remaining = await self.evictor.end(names, account_id)
        log.info("locked", account=account_id, vaults=closed, readers_remaining=remaining)
        return Reply("locked", {"vaults": closed, "readers_remaining": remaining})


def failure(error: AtRestError, request: Request, peer: Peer) -> Reply:
    """The reply that stands for an error; only an administrator hears its text."""
    fields: dict[str, Any] = {}
    result = next((word for kind, word in _RESULTS if isinstance(error, kind)), "")
    operation = type(request).__name__
    if isinstance(error, Alarm):
        alarm("unlock", "refused", op=operation, cause=str(error))
    elif not isinstance(error, WrongSecret | Busy | NotFound | WrongState | Conflict):
        log.error("failed", op=operation, cause=str(error))
    if isinstance(error, Busy) and peer.role is not Role.DOVECOT:
        fields["retry_after"] = round(error.retry_after, 1)
    if isinstance(error, InvalidName) and peer.role is Role.PORTAL:
        result = "not-found"
    if isinstance(error, TooManyKeys):
        result, fields["reason"] = "refused", REFUSED_TOO_MANY_KEYS
    elif peer.role is Role.ADMIN:
        fields["reason"] = str(error)
    elif result not in (_FOR_OWNERS if peer.role is Role.PORTAL else _FOR_EVERYBODY):
        result = "temporary-failure"
    return Reply(result or "temporary-failure", fields)


_RESULTS: tuple[tuple[type[AtRestError], str], ...] = (
    (WrongSecret, "wrong-secret"),
    (NoSession, "no-such-session"),
    (NotFound, "not-found"),
    (Busy, "busy"),
    (Conflict, "conflict"),
    (WrongState, "wrong-state"),
    (Damaged, "damaged"),
    (Alarm, "alarm"),
    (InvalidName, "invalid-name"),
    (BadCode, "bad-code"),
    (UsageError, "usage"),
)
_FOR_EVERYBODY = frozenset({"wrong-secret", "no-such-session", "busy"})
# The portal has words of its own for these, in the user's language.
_FOR_OWNERS = _FOR_EVERYBODY | {
    "not-found",
    "conflict",
    "wrong-state",
    "bad-code",
    "usage",
}


def client_of(service: str, source: str) -> str:
    """A client as its user is told of it."""
    return f"{service}, {source}" if source else service


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
