"""Enrolment at login: everybody's mail is encrypted from the next login on.

In the foreground of that login, and committed before its answer, which carries the keys. Whatever
goes wrong, or takes too long, commits nothing, and the site's answer stands: nobody is kept out of
their mail because it could not be encrypted today.
"""

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from lmtp_atrest.accounts import AdminRecovery
from lmtp_atrest.config import AtRest
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.errors import AtRestError, Conflict, WrongState
from lmtp_atrest.secret import Secret
from lmtp_atrest.strength import judge
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.requests import Login
from lmtp_atrest.unlock.service import Service

log = logger("unlock")

SECONDS = 5.0
# Each has one of Dovecot's auth workers wait, and takes another to ask who the user is.
AT_ONCE = 8
SIGHTINGS_LIMIT = 20_000


class Enrolment:
    """Encrypts accounts at their next login where the site says so."""

    def __init__(
        self,
        config: AtRest,
        service: Service,
        admin: AdminRecovery,
        add: Callable[[str], Awaitable[AccountRecord]],
    ) -> None:
        """`add` makes a plain account for a canonical name that has none."""
        self._config = config
        self._service = service
        self._accounts = service.accounts
        self._admin = admin
        self._add = add
        self._seen: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self._running: dict[str, asyncio.Task[AccountRecord | None]] = {}

    async def at_login(self, request: Login) -> AccountRecord | None:
        """The encrypted account, where this login enrols it (or another did so meanwhile).

        The site has accepted the secret of this request. None where nothing changed.
        """
        if self._config.enrolment != "at-login" or request.secret is None:
            return None
        name = self._service.names.canonical(request.name)
        running = self._running.get(name)
        if running is None and len(self._running) >= min(self._service.pool.width, AT_ONCE):
            return None  # the next login will do
        if running is None:
            running = asyncio.create_task(self._enrolled_once(name, request.secret))
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name))
        # Logins of one user at the same time wait for one enrolment: one that did not would come
        # in without keys, after the sessions from before were ended.
        return await asyncio.shield(running)

    async def _enrolled_once(self, name: str, secret: Secret) -> AccountRecord | None:
        try:
            async with asyncio.timeout(SECONDS):
                record = await self._service.record(name)
                if record is not None and record.holds_ciphertext:
                    return record
                if record is not None and record.has_own_certificates:
                    return None  # it is encrypted, and nothing here opens it
                if not self._confirmed(name, secret) or not await self._may():
                    return None
                if self._service.pool.pending >= self._service.pool.width:
                    return None
                record = record or await self._add(name)
            return await self._enrolled(record, secret)
        except (AtRestError, TimeoutError) as error:
            cause = str(error) or type(error).__name__
            log.error("not enrolled at login", cause=cause)
            return None

    async def _enrolled(self, record: AccountRecord, secret: Secret) -> AccountRecord | None:
        """Commit and go on; without a time limit, for from here on the answer must carry keys."""
        self._warn_if_weak(record, secret)
        try:
            after = await self._service.pool.run(self._enable, record.names[0], secret)
        except (Conflict, WrongState):
            # An administrator enrolled it at the same time.
            found = await asyncio.to_thread(self._accounts.record_by_id, record.account_id)
            return found if found and found.holds_ciphertext else None
        log.info("enrolled at login", account=after.account_id)
        await self._service.tell(after, "enabled")
        # Sessions from before would go on writing in plain, and could not read what comes.
        await self._service.evictor.end(after.names, after.account_id)
        return after

    def _enable(self, name: str, secret: Secret) -> AccountRecord:
        return self._accounts.enable(name, secret, None, self._admin.record())

    async def _may(self) -> bool:
        admin = await asyncio.to_thread(self._admin.record)
        recoverable = admin.key is not None and admin.policy != "forbidden"
        if recoverable or self._config.at_login_without_recovery == "accepted":
            return True
        log.error("nobody is enrolled at login: no admin recovery password is set")
        return False

    def _confirmed(self, name: str, secret: Secret) -> bool:
        """Whether this secret was seen at as many logins as the site asks for.

        Kept in memory only, as a keyed hash: a restart begins the count anew.
        """
        if self._config.at_login_confirmations <= 1:
            return True
        mark = self._service.opener.mark_of(name, secret)
        before, count = self._seen.pop(name, (b"", 0))
        count = count + 1 if hmac.compare_digest(before, mark) else 1
        if count >= self._config.at_login_confirmations:
            return True
        self._seen[name] = (mark, count)
        if len(self._seen) > SIGHTINGS_LIMIT:
            self._seen.popitem(last=False)
        return False

    def _warn_if_weak(self, record: AccountRecord, secret: Secret) -> None:
        strength = judge(secret, record.names)
        if strength.score < self._config.minimum_strength:
            log.warning("weak password at enrolment", account=record.account_id)
