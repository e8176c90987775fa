"""Grants: what lets a conversion open the messages of one account, for a while, and no more.

A grant is made from the user's secret or admin recovery; an open vault alone makes none. It is
bound to the account's epoch: whatever changes the account, or freezes it, ends it.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lmtp_atrest.accounts import AdminRecovery, Generations
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import UsageError, WrongState
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.keylife import KINDS, typed_secret
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    ConvertDone,
    ConvertGrant,
    ConvertProgress,
    ConvertUnwrap,
)
from lmtp_atrest.unlock.service import Service
from lmtp_atrest.unlock.vaults import NoSession

log = logger("unlock")

DIRECTIONS = ("decrypt", "rewrap", "reseal", "verify")
GRANT_SECONDS = 6 * 3600.0
COUNT_LIMIT = 50_000_000
PROGRESS_LIMIT = 100_000
NUMBER_DIGITS = 16


@dataclass(slots=True, eq=False)
class Grant:
    """What one conversion may do; `left` message keys until `until`, monotonic seconds."""

    account_id: str
    epoch: int
    direction: str
    left: int
    until: float
    vault_key: VaultKey


class Converting:
    """The operations of the convert socket, and the making of grants."""

    def __init__(
        self,
        service: Service,
        administration: Administration,
        admin: AdminRecovery,
        generations: Generations,
    ) -> None:
        self._service = service
        self._accounts = service.accounts
        self._administration = administration
        self._admin = admin
        self._generations = generations
        self._grants: dict[str, Grant] = {}
        self._progress: OrderedDict[str, ConvertProgress] = OrderedDict()

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {
            ConvertGrant: self._grant,
            ConvertUnwrap: self._unwrap,
            ConvertDone: self._done,
            ConvertProgress: self._told,
        }

    def progress(self, account_id: str) -> dict[str, Any] | None:
        """How far the conversion of this account is, as far as the convert service told."""
        told = self._progress.get(account_id)
        if told is None:
            return None
        return {
            "state": told.state,
            "encrypted": int(told.encrypted),
            "left": int(told.left),
            "failed": int(told.failed),
            "updated": int(told.updated),
        }

    async def expire(self) -> None:
        """Forget grants that are over."""
        now = self._service.now()
        for token, grant in list(self._grants.items()):
            if now >= grant.until or grant.left <= 0:
                self._forget(token)

    def wipe(self) -> None:
        """Forget all, at the end of the process."""
        for token in list(self._grants):
            self._forget(token)

    def _forget(self, token: str) -> None:
        self._grants.pop(token).vault_key = VaultKey(b"")

    async def _grant(self, request: ConvertGrant, _peer: Peer) -> Reply:
        if request.direction not in DIRECTIONS or not request.count.isdecimal():
            message = f"a grant is for one of {', '.join(DIRECTIONS)}, and a number of messages"
            raise UsageError(message)
        record = await self._administration.existing(request.name)
        if record.has_own_certificates and (
            request.direction != "verify" or not record.holds_ciphertext
        ):
            message = (
                f"{record.names[0]} encrypts to certificates of its owner ({record.kind}): "
                "nothing here opens that mail, and older mail is not converted for this kind"
            )
            raise WrongState(message)
        if not record.holds_ciphertext:
            message = f"{record.names[0]} is {record.state.value}, not encrypted"
            raise WrongState(message)
        if request.direction == "decrypt" and record.state.value != "leaving":
            message = f"{record.names[0]} is not leaving: account disable first"
            raise WrongState(message)
        vault_key = await self._service.pool.run(self._opened, record, request)
        if request.by == "admin":
            await self._service.tell(record, "admin-used")
        token = secrets.token_urlsafe(32)
        left = min(int(request.count), COUNT_LIMIT)
        until = self._service.now() + GRANT_SECONDS
        self._grants[token] = Grant(
            record.account_id, record.epoch, request.direction, left, until, vault_key
        )
        log.info("grant", account=record.account_id, direction=request.direction, count=left)
        return account_reply("granted", record, grant=token, expires=int(GRANT_SECONDS))

    def _opened(self, record: AccountRecord, request: ConvertGrant) -> VaultKey:
        if request.by == "admin":
            return self._admin.open(record, request.secret, f"admin-{request.direction}")
        secret = typed_secret(request.secret, request.by)
        return self._accounts.open(record, secret, KINDS[request.by]).vault_key

    async def _current(self, token: str) -> tuple[AccountRecord, Grant]:
        """The grant and its account's record, read for this use; NoSession."""
        grant = self._grants.get(token)
        if grant is not None:
            record = await asyncio.to_thread(self._accounts.record_by_id, grant.account_id)
            over = self._service.now() >= grant.until or grant.left <= 0
            if record is not None and record.epoch == grant.epoch and not over:
                return record, grant
            self._forget(token)
        message = "no such grant, or the account changed: make another"
        raise NoSession(message)

    async def _unwrap(self, request: ConvertUnwrap, _peer: Peer) -> Reply:
        record, grant = await self._current(request.grant)
        grant.left -= 1
        return await asyncio.to_thread(
            self._service.unwrapped, record, grant.vault_key, request.header, check_digest=False
        )

    async def _told(self, request: ConvertProgress, _peer: Peer) -> Reply:
        numbers = (request.encrypted, request.left, request.failed, request.updated)
        if not all(number.isdecimal() and len(number) < NUMBER_DIGITS for number in numbers):
            message = "progress is told in decimal numbers"
            raise UsageError(message)
        self._progress.pop(request.account, None)
        self._progress[request.account] = request
        if len(self._progress) > PROGRESS_LIMIT:
            self._progress.popitem(last=False)
        return Reply("noted")

    async def _done(self, request: ConvertDone, _peer: Peer) -> Reply:
        record, grant = await self._current(request.grant)
        self._forget(request.grant)
        if grant.direction == "decrypt":
            record = await asyncio.to_thread(self._generations.become_plain, record)
            self._service.vaults.close(record.account_id)
            log.info("account is plain", account=record.account_id)
        elif grant.direction in ("rewrap", "reseal") and record.reencrypt:
            record = await asyncio.to_thread(self._generations.reencrypted, record)
        return account_reply("done", record)
