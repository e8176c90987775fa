"""The unlock process put together: sockets, service, expiry, and an orderly end."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from lmtp_atrest.accounts import Accounts, AdminRecovery, Generations, Opened, SlotChanges
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.directory import Directory, DovecotDirectory, directory_of
from lmtp_atrest.keystore.audit import Audit
from lmtp_atrest.keystore.notices import Notices
from lmtp_atrest.secret import Secret
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import BARRIER_SECONDS, Administration
from lmtp_atrest.unlock.adminrecovery import AdminOperations
from lmtp_atrest.unlock.backup import Backup
from lmtp_atrest.unlock.converting import Converting
from lmtp_atrest.unlock.enrolment import Enrolment
from lmtp_atrest.unlock.evict import Evictor
from lmtp_atrest.unlock.keylife import KeyLife
from lmtp_atrest.unlock.logins import Logins
from lmtp_atrest.unlock.outbox import Outbox
from lmtp_atrest.unlock.ownkeys import OwnKeys
from lmtp_atrest.unlock.requests import Role
from lmtp_atrest.unlock.selfservice import SelfService
from lmtp_atrest.unlock.server import RoleServer, uids_of
from lmtp_atrest.unlock.service import Service

log = logger("unlock")

EXPIRY_SECONDS = 5.0
TIDY_SECONDS = 60.0
WARN_SECONDS = 3600.0
ROLES = (Role.DOVECOT, Role.READER, Role.CONVERT, Role.PORTAL, Role.ADMIN)


async def serve(
    config: Config,
    accounts: Accounts,
    stopping: asyncio.Event,
    hardening_missing: Sequence[str] = (),
    *,
    ready: asyncio.Event | None = None,
    barrier_seconds: float = BARRIER_SECONDS,
) -> None:
    """Serve the unlock sockets until `stopping` is set.

    Then accept no more, answer what is under way, and wipe the vaults. `ready` is set once all
    sockets listen. The caller hardened the process before it read the site key; `status` tells
    what `hardening_missing` names.
    """
    directory = directory_of(config)
    parts = build(
        config,
        accounts,
        directory,
        barrier_seconds=barrier_seconds,
        hardening_missing=hardening_missing,
    )
    service = parts.service
    await parts.admin.apply_policy()
    servers = build_servers(config, service)
    chores = (
        asyncio.create_task(_repeat(service.expire, EXPIRY_SECONDS)),
        asyncio.create_task(_repeat(parts.converting.expire, EXPIRY_SECONDS)),
        asyncio.create_task(_repeat(parts.outbox.send, EXPIRY_SECONDS)),
        asyncio.create_task(_repeat(service.forget_unused_caches, TIDY_SECONDS)),
        asyncio.create_task(_repeat(parts.own_keys.warn, WARN_SECONDS)),
    )
    try:
        for server in servers:
            server.start()
        log.info("serving", sockets=str(config.unlock.sockets))
        if ready is not None:
            ready.set()
        await stopping.wait()
    finally:
        await asyncio.gather(*(server.stop() for server in servers))
        for chore in chores:
            chore.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await chore
        service.wipe()
        parts.converting.wipe()
        if isinstance(directory, DovecotDirectory):
            await directory.close()
        log.info("stopped")


@dataclass(frozen=True, slots=True)
class Parts:
    """The service with all its operations, and what else runs beside it."""

    service: Service
    outbox: Outbox
    converting: Converting
    admin: AdminOperations
    own_keys: OwnKeys


def build(
    config: Config,
    accounts: Accounts,
    directory: Directory,
    *,
    now: Callable[[], float] = time.monotonic,
    barrier_seconds: float = BARRIER_SECONDS,
    hardening_missing: Sequence[str] = (),
) -> Parts:
    """All operations of all sockets, without the sockets."""
    generations = Generations(accounts)
    slots = SlotChanges(accounts, generations)
    admin = AdminRecovery(accounts, Audit(accounts.vaults.store))
    outbox = Outbox(
        config.notices, accounts, Notices(accounts.vaults.store), config.names.default_domain
    )

    def settle(
        record: AccountRecord, opened: Opened, secret: Secret, *, verified: bool
    ) -> tuple[AccountRecord, VaultKey]:
        return slots.settle(record, opened, secret, admin.record, verified=verified)

    service = Service(
        config,
        accounts,
        Evictor(config.unlock.evict.socket),
        notices=outbox,
        settle=settle,
        now=now,
    )
    administration = Administration(
        config,
        service,
        directory,
        barrier_seconds=barrier_seconds,
        hardening_missing=hardening_missing,
    )
    enrolment = Enrolment(config.atrest, service, admin, administration.add_found)
    operations = AdminOperations(config, service, administration, admin, slots, generations)
    own_keys = OwnKeys(service, administration)
    converting = Converting(service, administration, admin, generations)
    for part in (
        converting,
        Backup(service, administration),
        Logins(service, directory, enrolment),
        administration,
        KeyLife(config, service, administration, admin, generations, slots),
        operations,
        SelfService(service, administration, admin, converting),
        own_keys,
    ):
        service.add_operations(part.operations())
    return Parts(service, outbox, converting, operations, own_keys)


def build_servers(config: Config, service: Service) -> list[RoleServer]:
    """The sockets, not yet listening."""
    return [
        RoleServer(
            role,
            config.unlock.sockets / f"{role}.sock",
            uids_of(_peers(config, role)),
            service.answer,
        )
        for role in ROLES
    ]


def _peers(config: Config, role: Role) -> tuple[str, ...]:
    named: tuple[str, ...] = getattr(config.unlock.peers, role)
    if role is Role.CONVERT and config.lmtp.user is not None:
        return (*named, config.lmtp.user)  # conversions run as the owner of the Maildirs
    if role is Role.PORTAL and config.portal.user is not None:
        return (*named, config.portal.user)
    return named


async def _repeat(chore: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await chore()
        except Exception as error:
            # One that ended would never expire a vault again; the text may name what it held.
            log.error("chore failed", error=type(error).__name__)
