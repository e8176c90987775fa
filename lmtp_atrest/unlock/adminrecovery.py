"""Admin recovery, for the admin socket: the key, the policy, and every use of it."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from lmtp_atrest.accounts import AdminRecovery, Generations, SlotChanges
from lmtp_atrest.config import Config
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.secret import Secret
from lmtp_atrest.strength import require
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    AdminChange,
    AdminExport,
    AdminLeave,
    AdminResetPassword,
    AdminSet,
    AdminStatus,
    AuditList,
)
from lmtp_atrest.unlock.service import Service

log = logger("unlock")

MINIMUM_STRENGTH = 3  # it opens the mail of all: no setting makes it weaker


class AdminOperations:
    """The operations of admin recovery."""

    def __init__(
        self,
        config: Config,
        service: Service,
        administration: Administration,
        admin: AdminRecovery,
        slots: SlotChanges,
        generations: Generations,
    ) -> None:
        self._generations = generations
        self._policy = config.recovery.admin
        self._service = service
        self._administration = administration
        self._admin = admin
        self._slots = slots

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {
            AdminSet: self._set,
            AdminStatus: self._status,
            AdminChange: self._change,
            AdminResetPassword: self._reset_password,
            AdminLeave: self._leave,
            AdminExport: self._export,
            AuditList: self._audit_list,
        }

    async def apply_policy(self) -> None:
        """At start: forget what a crash left of earlier passwords; sign the policy of the
        configuration; where it forbids, take slots away."""
        try:
            await asyncio.to_thread(self._admin.repair)
            await asyncio.to_thread(self._admin.set_policy, self._policy)
            withdrawn = await asyncio.to_thread(self._admin.withdraw)
        except AtRestError as error:
            log.error("policy of admin recovery not applied", cause=str(error))
            return
        for account in withdrawn:
            self._service.vaults.close(account.account_id)
        if withdrawn:
            log.info("admin recovery withdrawn", accounts=len(withdrawn))

    async def _set(self, request: AdminSet, _peer: Peer) -> Reply:
        await self._check_strength(request.secret)
        await self._service.pool.run(self._admin.set, request.secret)
        return await self._state("set")

    async def _status(self, _request: AdminStatus, _peer: Peer) -> Reply:
        return await self._state("status")

    async def _change(self, request: AdminChange, _peer: Peer) -> Reply:
        await self._check_strength(request.new_secret)
        arguments = (request.secret, request.new_secret)
        if request.new_key:
            await self._service.pool.run(self._admin.change_key, *arguments)
        else:
            await self._service.pool.run(self._admin.change_password, *arguments)
        return await self._state("changed")

    async def _reset_password(self, request: AdminResetPassword, _peer: Peer) -> Reply:
        record = await self._administration.existing(request.name)
        vault_key = await self._service.pool.run(
            self._admin.open, record, request.secret, "admin-reset-password"
        )
        after = await self._service.pool.run(
            self._slots.replace_password, record, vault_key, request.new_secret
        )
        await self._service.tell(after, "admin-used")
        return await self._administration.changed(after, "changed")

    async def _leave(self, request: AdminLeave, _peer: Peer) -> Reply:
        record = await self._administration.existing(request.name)
        await self._service.pool.run(self._admin.open, record, request.secret, "admin-leave")
        after = await self._service.pool.run(self._generations.leave, record)
        await self._service.tell(after, "admin-used")
        return await self._administration.changed(after, "changed")

    async def _export(self, request: AdminExport, _peer: Peer) -> Reply:
        await self._check_strength(request.passphrase)
        record = await self._administration.existing(request.name)
        vault_key = await self._service.pool.run(
            self._admin.open, record, request.secret, "admin-export"
        )
        await self._service.tell(record, "admin-used")
        keys = await asyncio.to_thread(self._service.accounts.private_keys, record, vault_key)
        pems = [key.encrypted_pem(request.passphrase) for key in keys]
        return account_reply(
            "exported", record, keys=[base64.b64encode(pem).decode() for pem in pems]
        )

    async def _audit_list(self, _request: AuditList, _peer: Peer) -> Reply:
        entries = await asyncio.to_thread(lambda: list(self._admin.audit.entries()))
        return Reply("audit", {"entries": [asdict(entry) for entry in entries]})

    async def _state(self, result: str) -> Reply:
        status = await asyncio.to_thread(self._admin.status)
        return Reply(result, asdict(status))

    async def _check_strength(self, secret: Secret) -> None:
        await asyncio.to_thread(require, secret, MINIMUM_STRENGTH)
