"""What Dovecot asks: logins, logins with app passwords, and the public half for deliveries.

Replies are flat and say nothing that a login user could not know. Keys leave only for imap and
pop3, to a user who sent a password (PLAIN, LOGIN) that the site itself accepted.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from lmtp_atrest.accounts import handout
from lmtp_atrest.crypto import app_password
from lmtp_atrest.crypto.app_password import AppPassword
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.directory import Directory
from lmtp_atrest.errors import AtRestError, BadCode, TemporaryFailure, WrongSecret
from lmtp_atrest.keystore.activity import OPENED
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.enrolment import Enrolment
from lmtp_atrest.unlock.opening import Try
from lmtp_atrest.unlock.presence import Presence
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import AppLogin, Login, Lookup
from lmtp_atrest.unlock.service import Service, TooManyKeys, client_of
from lmtp_atrest.unlock.vaults import OpenVault

log = logger("unlock")

SERVICES_WITH_KEYS = frozenset({"imap", "pop3"})
MECHANISMS_WITH_SECRET = frozenset({"PLAIN", "LOGIN"})
DAY_MS = 86400 * 1000
MISMATCH_QUIET_MS = 7 * DAY_MS

REFUSED_MASTER = "The mail of this account is encrypted: a master user cannot open it."
REFUSED_MECHANISM = (
    "The mail of this account is encrypted: the mail program has to send the password itself "
    "(PLAIN or LOGIN, over TLS)."
)
REFUSED_UNVERIFIED = "The mail of this account is encrypted: the site did not check the password."
REFUSED_MISMATCH = (
    "The mail of this account is encrypted with another password than the one you logged in with. "
    "Log in with the password from before the last change, or ask your administrator."
)
REFUSED_FROZEN = "The mail of this account is frozen: ask your administrator."
REFUSED_SUSPENDED = "App passwords of this account do not count at present."


class Logins:
    """The operations of the dovecot socket."""

    def __init__(self, service: Service, directory: Directory, enrolment: Enrolment) -> None:
        self._service = service
        self._accounts = service.accounts
        self._presence = Presence(directory, service.now)
        self._enrolment = enrolment

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {Login: self._login, AppLogin: self._app_login, Lookup: self._lookup}

    # ---- logins

    async def _login(self, request: Login, _peer: Peer) -> Reply:
        record = await self._service.record(request.name)
        if record is None or not record.holds_ciphertext:
            if request.service not in SERVICES_WITH_KEYS or _refusal(request):
                return Reply("not-enrolled")
            record = await self._enrolment.at_login(request)
            if record is None:
                return Reply("not-enrolled")
        if request.service not in SERVICES_WITH_KEYS:
            return Reply("no-keys")
        if reason := _refusal(request) or (REFUSED_FROZEN if record.frozen else ""):
            log.info("login refused", account=record.account_id, reason=reason)
            return Reply("refused", {"reason": reason})
        assert request.secret is not None  # noqa: S101 - _refusal said so; for the type checker
        try:
            vault = await self._service.opener.open(
                Try(record, request.secret, request.source, verified=True)
            )
        except WrongSecret:
            return await self._mismatch(record)
        return await self._opened(record, vault, request)

    async def _opened(
        self, record: AccountRecord, vault: OpenVault, request: Login | AppLogin, label: str = ""
    ) -> Reply:
        record, service = await self._service.settled(record, vault), request.service
        keys = await asyncio.to_thread(self._worker_keys, record, vault)
        log.info("login", account=record.account_id, service=service, keys=len(keys) // 2)
        client = client_of(f"{service} ({label})" if label else service, request.source)
        await self._service.note(record, OPENED, client, daily=True)
        fields = {**self.public_fields(record), "keys": str(len(keys) // 2), **keys}
        return Reply("opened", fields)

    async def _mismatch(self, record: AccountRecord) -> Reply:
        log.warning("login with another password", account=record.account_id)
        await self._service.tell(record, "mismatch", quiet=MISMATCH_QUIET_MS)
        if self._service.config.on_mismatch == "let-in-closed":
            return Reply("closed", {**self.public_fields(record), "keys": "0"})
        return Reply("refused", {"reason": REFUSED_MISMATCH})

    def _worker_keys(self, record: AccountRecord, vault: OpenVault) -> dict[str, str]:
        keys = self._accounts.private_keys(record, vault.vault_key)
        handed_out = [handout.one_time(key) for key in keys]
        size = handout.reply_bytes(handed_out)
        if size > handout.WORKER_REPLY_BYTES:
            message = f"account {record.account_id}: {len(keys)} keys take {size} bytes"
            raise TooManyKeys(message)
        fields = {}
        for number, (pem, password) in enumerate(handed_out, 1):
            fields[f"private_key{number}"], fields[f"password{number}"] = pem, password
        return fields

    # ---- app passwords

    async def _app_login(self, request: AppLogin, _peer: Peer) -> Reply:
        """Asked before the site's passdb: whatever is not one of ours is the site's to judge."""
        if not app_password.is_app_password(request.secret.reveal()):
            return Reply("not-enrolled")
        record = await self._service.record(request.name)
        if record is None or not record.holds_ciphertext:
            return Reply("not-enrolled")
        try:
            typed = app_password.read(request.secret.reveal())
        except BadCode:  # somebody's own password that begins like ours, perhaps
            return Reply("not-enrolled")
        if record.frozen:
            await asyncio.to_thread(self._check_frozen, record, typed)
            return Reply("refused", {"reason": REFUSED_FROZEN})
        vault, slot_id, label = await self._app_opened(record, typed, request.source)
        if reason := await self._app_refusal(record, request):
            log.info("app login refused", account=record.account_id, reason=reason)
            return Reply("refused", {"reason": reason})
        await self._note_use(slot_id)
        if request.service not in SERVICES_WITH_KEYS:
            return Reply("accepted")
        return await self._opened(record, vault, request, label)

    def _check_frozen(self, record: AccountRecord, typed: AppPassword) -> None:
        """WrongSecret unless it would open the vault: a stranger is not told that it is frozen."""
        kind, handle = SlotKind.APP_PASSWORD, typed.handle
        self._accounts.open(record, typed.secret, kind, handle=handle, frozen=True)

    async def _app_opened(
        self, record: AccountRecord, typed: AppPassword, source: str
    ) -> tuple[OpenVault, str, str]:
        vault = await self._service.opener.open(
            Try(record, typed.secret, source, False, SlotKind.APP_PASSWORD, typed.handle)
        )
        present = await self._service.settled(record, vault)
        slots = (await asyncio.to_thread(self._accounts.vault, present)).slots
        named = ((s.slot_id, s.label) for s in slots if s.slot_id.startswith(typed.handle))
        return vault, *next(named, ("", ""))

    async def _app_refusal(self, record: AccountRecord, request: AppLogin) -> str:
        """No site stands behind an app password: whom it no longer lets in must stay out here."""
        if request.mechanism.upper() not in MECHANISMS_WITH_SECRET:
            return REFUSED_MECHANISM
        if record.suspended:
            return REFUSED_SUSPENDED
        ours = self._service.directory_is_ours
        return "" if ours or await self._presence.known(record.names[0]) else REFUSED_SUSPENDED

    async def _note_use(self, slot_id: str) -> None:
        day = datetime.fromtimestamp(self._accounts.milliseconds() / 1000, UTC).strftime(
            "%Y-%m-%d"
        )
        try:
            known = await asyncio.to_thread(self._accounts.vaults.uses, [slot_id])
            if known.get(slot_id) != day:
                await asyncio.to_thread(self._accounts.vaults.use, slot_id, day)
        except AtRestError as error:
            log.error("use of an app password not noted", cause=str(error))

    # ---- deliveries

    async def _lookup(self, request: Lookup, _peer: Peer) -> Reply:
        record = await self._service.record(request.name)
        if record is not None and record.has_own_certificates and self._service.dovecot_delivers:
            # "Not enrolled" would have Dovecot store this mail plain.
            message = f"account {record.account_id} is {record.kind}: only our LMTP encrypts to it"
            raise TemporaryFailure(message)
        if record is None or not record.holds_ciphertext:
            return Reply("not-enrolled")
        return Reply("found", self.public_fields(record))

    def public_fields(self, record: AccountRecord) -> dict[str, str]:
        """What a session or delivery gets without any secret."""
        config = self._service.config
        fields = {
            "account": record.account_id,
            "state": record.state.value,
            "public_key": base64.b64encode(PublicKey.from_der(record.public_key).pem()).decode(),
            "temp_dir": str(config.temp_dir),
            "cache": config.cache,
        }
        if config.cache == "ram":
            fields["cache_dir"] = str(config.cache_root / record.account_id)
        return fields


def _refusal(request: Login) -> str:
    """Why this login gets no key although its service might; empty if it may try."""
    if not request.site_verified:
        return REFUSED_UNVERIFIED
    if request.master:
        return REFUSED_MASTER
    if request.mechanism.upper() not in MECHANISMS_WITH_SECRET or not request.secret:
        return REFUSED_MECHANISM
    return ""
