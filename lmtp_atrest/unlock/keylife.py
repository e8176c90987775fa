"""The life of an account's keys, for the admin socket: codes, passwords, keys, freezing.

Each operation opens the vault with a secret that it was given, has `accounts` make one change, and
then ends what still holds the state before it: the open vault, and the readers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from lmtp_atrest import notify
from lmtp_atrest.accounts import AdminRecovery, Generations, SlotChanges
from lmtp_atrest.config import Config
from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.crypto.records import AccountRecord, VaultSeal
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import AtRestError, NotFound, UsageError, WrongSecret, WrongState
from lmtp_atrest.secret import Secret
from lmtp_atrest.strength import judge, require
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.opening import Try
from lmtp_atrest.unlock.passwordcommand import run_password_command
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    AccountAdmin,
    AccountCode,
    AccountDisable,
    AccountEnable,
    AccountFreeze,
    AccountJoin,
    AccountPassword,
    AccountPasswordAbort,
    AccountRecover,
    AccountReset,
    AccountRotate,
    AccountSuspend,
    AccountThaw,
    AppPasswordAdd,
    AppPasswordRemove,
    Role,
)
from lmtp_atrest.unlock.service import Service

log = logger("unlock")

T = TypeVar("T")
_WithPassword: TypeAlias = (
    AccountCode
    | AccountPassword
    | AccountRotate
    | AccountDisable
    | AppPasswordAdd
    | AppPasswordRemove
    | AccountAdmin
)

NOT_TAKEN = "the site did not take the new password: the old one counts as before"
KINDS = {"password": SlotKind.PASSWORD, "code": SlotKind.RECOVERY_CODE}
LABEL_LIMIT = 64


class KeyLife:
    """The operations on an account's keys."""

    def __init__(
        self,
        config: Config,
        service: Service,
        administration: Administration,
        admin: AdminRecovery,
        generations: Generations,
        slots: SlotChanges,
    ) -> None:
        self._config = config
        self._service = service
        self._accounts = service.accounts
        self._administration = administration
        self._changed = administration.changed
        self._admin = admin
        self._generations = generations
        self._slots = slots

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {
            AccountEnable: self._enable,
            AccountCode: self._code,
            AccountRecover: self._recover,
            AccountPassword: self._password,
            AccountPasswordAbort: self._password_abort,
            AccountJoin: self._join,
            AccountReset: self._reset,
            AccountRotate: self._rotate,
            AccountDisable: self._disable,
            AccountFreeze: self._freeze,
            AccountThaw: self._thaw,
            AccountSuspend: self._suspend,
            AccountAdmin: self._choose_admin,
            AppPasswordAdd: self._app_password_add,
            AppPasswordRemove: self._app_password_remove,
        }

    # ---- enable, and recovery codes

    async def _enable(self, request: AccountEnable, peer: Peer) -> Reply:
        if not request.secret:
            message = "an empty password cannot open anything"
            raise UsageError(message)
        name = self._administration.canonical(request.name)
        if peer.role is Role.PORTAL:
            await self._enrolling(name)
        code = recovery_code.generate() if self._config.recovery.code else None
        await asyncio.to_thread(self._check_mail_to, request.mail_to, code)
        warning = await self._warning(request.secret, name)
        admin = await asyncio.to_thread(self._admin.record)
        if admin.policy == "required" and admin.key is None:
            message = "recovery.admin is required, but no password is set: admin-recovery set"
            raise WrongState(message)
        record = await self._run(self._accounts.enable, name, request.secret, code, admin)
        await self._barrier()
        await self._service.tell(record, "enabled")
        remaining = await self._service.evictor.end(record.names, record.account_id)
        shown = await self._shown(record, code, request.mail_to)
        return account_reply("enabled", record, readers_remaining=remaining, **shown, **warning)

    async def _enrolling(self, name: str) -> None:
        """A user asks: the site must let users, and the account may have to be made first."""
        if self._config.atrest.enrolment == "closed":
            message = "users do not enrol themselves at this site (atrest.enrolment)"
            raise WrongState(message)
        if await asyncio.to_thread(self._accounts.record, name) is None:
            if self._service.directory_is_ours:
                message = f"no account has the name {name}"
                raise NotFound(message)
            await self._administration.add_found(name)

    async def _code(self, request: AccountCode, peer: Peer) -> Reply:
        code = recovery_code.generate()
        await asyncio.to_thread(self._check_mail_to, request.mail_to, code)
        record, vault_key = await self._opened(request, peer)
        after = await self._run(self._slots.replace_code, record, vault_key, code)
        await self._service.tell(after, "code-made")
        shown = await self._shown(after, code, request.mail_to)
        return await self._changed(after, "changed", **shown)

    async def _recover(self, request: AccountRecover, _peer: Peer) -> Reply:
        typed = recovery_code.read(request.code.reveal())
        code = recovery_code.generate()
        record = await self._administration.existing(request.name)
        opened = await self._run(
            lambda: self._accounts.open(record, typed, SlotKind.RECOVERY_CODE)
        )
        warning = await self._checked_strength(request.new_secret, record.names)
        if request.at_site:
            warning |= await self._set_at_site(record.names[0], request.new_secret)
        after = await self._run(
            lambda: self._slots.replace_password(
                record,
                opened.vault_key,
                request.new_secret,
                code,
                compromised=request.compromised,
            )
        )
        await self._service.tell(after, "recovered")
        shown = await self._shown(after, code)
        return await self._changed(after, "recovered", **shown, **warning)

    async def _set_at_site(self, name: str, new: Secret) -> dict[str, Any]:
        """The site's command takes the new password too, without the one that nobody knows."""
        command = self._config.site.password_command
        if command is None:
            message = "the site's password is not ours to change (site.password_command)"
            raise WrongState(message)
        changed = await run_password_command(command, name, Secret(b""), new)
        if changed is False:
            raise WrongState(NOT_TAKEN)
        return {} if changed else {"warning": "the site did not say whether it took the password"}

    def _check_mail_to(self, address: str, code: Secret | None) -> None:
        """UsageError where a code may not be mailed, or not to there."""
        if not address:
            return
        if code is None or not self._config.recovery.mail_code:
            message = "this site mails no recovery codes (recovery.mail_code)"
            raise UsageError(message)
        local, _, domain = address.rpartition("@")
        if not local or self._is_ours(domain.lower()):
            message = (
                "the address must be outside this site: a code that is mailed into the mailbox "
                "which it opens cannot be read when it is needed"
            )
            raise UsageError(message)

    def _is_ours(self, domain: str) -> bool:
        names = self._config.names
        ours = {*names.alias_domains, *names.alias_domains.values(), names.default_domain or ""}
        for record in self._accounts.all():
            ours |= {name.rpartition("@")[2] for name in record.names}
        return domain in ours

    async def _shown(
        self, record: AccountRecord, code: Secret | None, mail_to: str = ""
    ) -> dict[str, Any]:
        if code is None:
            return {}
        written = recovery_code.written(code)
        if not mail_to:
            return {"code": written}
        try:
            await asyncio.to_thread(
                notify.mail_code, self._config.notices, record.names[0], mail_to, written
            )
        except AtRestError as error:
            # The code counts already: shown after all, or nobody would have it.
            return {"code": written, "warning": str(error)}
        return {"code_mailed_to": mail_to}

    # ---- passwords

    async def _password(self, request: AccountPassword, peer: Peer) -> Reply:
        command = self._config.site.password_command
        if command is None:
            message = (
                "the site's password is not ours to change (site.password_command): change it "
                "there, then `account join` with the old one"
            )
            raise WrongState(message)
        name = self._administration.canonical(request.name)
        warning = await self._checked_strength(request.new_secret, (name,))
        present = await self._service.record(name)
        if present is None or not present.holds_ciphertext:
            if peer.role is Role.PORTAL:  # nothing here could tell whether it is a guess
                message = f"{name} is not encrypted"
                raise WrongState(message)
            return await self._site_password(command, name, request, warning)
        record, vault_key = await self._opened(request, peer)
        after = await self._run(self._slots.begin_password, record, vault_key, request.new_secret)
        changed = await run_password_command(
            command, record.names[0], request.secret, request.new_secret
        )
        if changed is False:
            after = await self._run(self._slots.abort_password, after)
            await self._changed(after, "")
            raise WrongState(NOT_TAKEN)
        if changed is None:
            warning["warning"] = (
                "the site did not say whether it took the new password: the old and the new one "
                "both open the mail, until a login shows which counts"
            )
        await self._service.tell(after, "password-changed")
        return await self._changed(after, "changed", **warning)

    async def _site_password(
        self, command: str, name: str, request: AccountPassword, warning: dict[str, Any]
    ) -> Reply:
        """The password of somebody whose mail is not encrypted: the site's business alone.

        Here too, so that a webmail's page for passwords need not know whose mail is.
        """
        if not await run_password_command(command, name, request.secret, request.new_secret):
            raise WrongState(NOT_TAKEN)
        return Reply("changed", {"names": [name], "state": "plain", "epoch": 0, **warning})

    async def _password_abort(self, request: AccountPasswordAbort, _peer: Peer) -> Reply:
        record = await self._administration.existing(request.name)
        after = await self._run(self._slots.abort_password, record)
        return await self._changed(after, "changed")

    async def _join(self, request: AccountJoin, peer: Peer) -> Reply:
        if request.by in KINDS:
            # A typing error is told before anything is said about the account.
            typed_secret(request.secret, request.by)
        record = await self._administration.existing(request.name)
        vault_key, seal = await self._older(record, request, peer)
        if request.by == "admin":
            await self._service.tell(record, "admin-used")
        if seal == record.seal:
            after = await self._run(
                lambda: self._slots.replace_password(
                    record, vault_key, request.new_secret, compromised=request.compromised
                )
            )
            await self._service.tell(after, "password-changed")
            return await self._changed(after, "joined", vaults_closed=len(after.closed))
        present = await self._run(self._accounts.open, record, request.new_secret)
        after = await self._run(
            lambda: self._generations.join(
                record, present.vault_key, seal, vault_key, accept_admin=request.accept_admin
            )
        )
        await self._service.note(after, "joined")
        return await self._changed(after, "joined", vaults_closed=len(after.closed))

    async def _older(
        self, record: AccountRecord, request: AccountJoin, peer: Peer
    ) -> tuple[VaultKey, VaultSeal]:
        """The vault, present or closed, that the older secret opens; WrongSecret."""
        if peer.role is not Role.PORTAL or not record.holds_ciphertext:
            return await self._run(self._any_vault, record, request)
        kind = KINDS.get(request.by, SlotKind.PASSWORD)
        found: list[VaultSeal] = []

        def opening() -> VaultKey:
            vault_key, seal = self._any_vault(record, request)
            found.append(seal)
            return vault_key

        attempt = Try(record, request.secret, request.source, kind=kind)
        return await self._service.opener.prove(attempt, opening), found[0]

    def _any_vault(
        self, record: AccountRecord, request: AccountJoin
    ) -> tuple[VaultKey, VaultSeal]:
        failure: AtRestError = WrongSecret("no vault of this account opens with this secret")
        for seal in (record.seal, *record.closed):
            try:
                return self._by(record, request, seal), seal
            except (WrongSecret, WrongState) as error:
                failure = error
        raise failure

    def _by(self, record: AccountRecord, request: AccountJoin, seal: VaultSeal) -> VaultKey:
        if request.by == "admin":
            self._admin.check(request.secret)
            return self._admin.open(record, request.secret, "admin-join", seal)
        return self._accounts.open(
            record, typed_secret(request.secret, request.by), KINDS[request.by], seal=seal
        ).vault_key

    # ---- keys

    async def _reset(self, request: AccountReset, _peer: Peer) -> Reply:
        record = await self._administration.existing(request.name)
        warning = await self._warning(request.new_secret, record.names[0])
        code = recovery_code.generate() if self._config.recovery.code else None
        admin = await asyncio.to_thread(self._admin.record)
        after = await self._run(self._generations.reset, record, request.new_secret, code, admin)
        await self._barrier()
        await self._service.tell(after, "reset")
        shown = await self._shown(after, code)
        return await self._changed(
            after, "reset", vaults_closed=len(after.closed), **shown, **warning
        )

    async def _rotate(self, request: AccountRotate, peer: Peer) -> Reply:
        record, vault_key = await self._opened(request, peer)
        after, _ = await self._run(
            lambda: self._generations.rotate(record, vault_key, compromised=request.compromised)
        )
        if request.compromised:
            await self._barrier()
        await self._service.note(after, "rotated")
        return await self._changed(after, "rotated")

    async def _disable(self, request: AccountDisable, peer: Peer) -> Reply:
        record, _ = await self._opened(request, peer)
        change = self._generations.return_ if request.undo else self._generations.leave
        after = await self._run(change, record)
        await self._barrier()
        await self._service.tell(after, "enabled" if request.undo else "disabled")
        return await self._changed(after, "changed")

    # ---- freezing

    async def _freeze(self, request: AccountFreeze, _peer: Peer) -> Reply:
        if request.name:
            record = await self._administration.existing(request.name)
            after = await self._run(self._generations.freeze, record)
            await self._service.tell(after, "frozen")
            return await self._changed(after, "frozen")
        # All at once first; readers are ended after that.
        records = await asyncio.to_thread(self._accounts.all)
        frozen = [
            await self._run(self._generations.freeze, record)
            for record in records
            if record.holds_ciphertext
        ]
        ends = [(await self._changed(after, ""))["readers_remaining"] for after in frozen]
        total = "unknown" if "unknown" in ends else sum(ends)
        return Reply("frozen", {"accounts": len(frozen), "readers_remaining": total})

    async def _thaw(self, request: AccountThaw, _peer: Peer) -> Reply:
        if request.by not in self._config.recovery.thaw_with:
            message = f"this site thaws accounts by {' or '.join(self._config.recovery.thaw_with)}"
            raise UsageError(message)
        record = await self._administration.existing(request.name)
        secret, kind = typed_secret(request.secret, request.by), KINDS[request.by]
        await self._run(lambda: self._accounts.open(record, secret, kind, frozen=True))
        after = await self._run(self._generations.thaw, record)
        await self._service.tell(after, "thawed")
        return await self._changed(after, "thawed")

    async def _suspend(self, request: AccountSuspend, _peer: Peer) -> Reply:
        record = await self._administration.existing(request.name)
        after = await self._run(
            lambda: self._generations.suspend(record, suspended=request.suspended)
        )
        return await self._changed(after, "changed")

    # ---- app passwords, and the owner's word on admin recovery

    async def _app_password_add(self, request: AppPasswordAdd, peer: Peer) -> Reply:
        if not 0 < len(request.label) <= LABEL_LIMIT:
            message = f"a label has 1 to {LABEL_LIMIT} characters"
            raise UsageError(message)
        record, vault_key = await self._opened(request, peer)
        after, made = await self._run(
            self._slots.add_app_password, record, vault_key, request.label
        )
        await self._service.tell(after, "app-password-added")
        return await self._changed(after, "added", handle=made.handle, app_password=made.written())

    async def _app_password_remove(self, request: AppPasswordRemove, peer: Peer) -> Reply:
        if request.secret is None:
            record = await self._administration.existing(request.name)
            vault_key = None
        else:
            record, vault_key = await self._opened(request, peer)
        after = await self._run(
            self._slots.remove_app_password, record, request.handle.lower(), vault_key
        )
        await self._service.note(after, "app-password-removed")
        return await self._changed(after, "removed")

    async def _choose_admin(self, request: AccountAdmin, peer: Peer) -> Reply:
        record, vault_key = await self._opened(request, peer)
        admin = await asyncio.to_thread(self._admin.record)
        if admin.policy != "allowed":
            message = f"admin recovery is {admin.policy} at this site: there is nothing to choose"
            raise WrongState(message)
        after = await self._run(
            lambda: self._slots.set_admin_slot(record, vault_key, admin, wanted=request.wanted)
        )
        await self._service.note(after, "admin-accepted" if request.wanted else "admin-refused")
        return await self._changed(after, "changed")

    # ---- shared

    async def _opened(self, request: _WithPassword, peer: Peer) -> tuple[AccountRecord, VaultKey]:
        assert request.secret is not None  # noqa: S101 - whoever calls this has looked
        record = await self._administration.existing(request.name)
        if not record.holds_ciphertext:
            message = f"{record.names[0]} is {record.state.value}, not encrypted"
            raise WrongState(message)
        if peer.role is not Role.PORTAL:
            return record, (await self._run(self._accounts.open, record, request.secret)).vault_key
        vault_key = await self._service.opener.prove(Try(record, request.secret, request.source))
        if record.frozen:
            message = f"account {record.account_id} is frozen"
            raise WrongState(message)
        return record, vault_key

    async def _barrier(self) -> None:
        """Wait until no delivery is under way that read how the account stood before."""
        await asyncio.sleep(self._administration.barrier_seconds)

    async def _checked_strength(self, secret: Secret, about: Sequence[str]) -> dict[str, Any]:
        """A warning for the reply; UsageError for what is weaker than the site allows."""
        minimum = self._config.atrest.minimum_strength
        strength = await asyncio.to_thread(require, secret, minimum, about)
        return {"warning": strength.warning} if strength.warning else {}

    async def _warning(self, secret: Secret, name: str) -> dict[str, Any]:
        """The same for the site's own password, which is not ours to refuse."""
        strength = await asyncio.to_thread(judge, secret, (name,))
        return {"warning": strength.warning} if strength.warning else {}

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """In a thread of the pool: whatever opens or makes a slot may cost Argon2id."""
        return await self._service.pool.run(function, *arguments)


def typed_secret(secret: Secret, by: str) -> Secret:
    """The secret as its slot takes it; BadCode, UsageError for a kind that there is not."""
    if by not in KINDS:
        message = f"{by!r} is neither password nor code"
        raise UsageError(message)
    return recovery_code.read(secret.reveal()) if by == "code" else secret
