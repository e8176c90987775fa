"""Ending IMAP sessions: the helper that runs as root, and the side of `unlock` that asks it.

A reader keeps its private keys until it disconnects, and Dovecot lets only root end sessions. So
a process of its own runs the site's two commands and looks after the index caches in RAM. It must
hold no key, and must hand a command no name that it could read as an option or a pattern:
`doveadm kick '*'` ends everybody. Whose session it is, is told by the canonical name: Dovecot may
know a user by another spelling, without the domain or under one of its aliases.
"""

import asyncio
import contextlib
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeAlias

from lmtp_atrest.config import Config
from lmtp_atrest.errors import AtRestError, TemporaryFailure, UsageError
from lmtp_atrest.names import InvalidName, Names
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock import caches
from lmtp_atrest.unlock.client import Client
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import Caches, End, Forget, Request, Role, Who
from lmtp_atrest.unlock.server import RoleServer, uids_of

log = logger("evict")

UNSAFE_NAME = re.compile(r"^-|[*?\s\0-\x1f\x7f]|^$")
COMMAND_SECONDS = 10.0
END_SECONDS = 3.0
POLL_SECONDS = 0.1
ASK_SECONDS = 30.0
# One run of `who` answers all questions of a round that tidies up.
TABLE_SECONDS = 5.0
LIMIT_SECONDS = 60.0
CACHES_PAGE = 500

Remaining: TypeAlias = int | Literal["unknown"]
NamesOf: TypeAlias = Callable[[str], Awaitable[tuple[str, ...] | None]]


class Evictor:
    """Asks the helper; without one, or when it fails, the number of readers is unknown."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket

    @property
    def configured(self) -> bool:
        """True where there is a helper to ask."""
        return self._socket is not None

    async def end(self, names: tuple[str, ...], account_id: str) -> Remaining:
        """End all sessions of an account under all its names; how many remain."""
        if self._socket is None:
            return "unknown"
        try:
            async with asyncio.timeout(ASK_SECONDS * len(names)):
                async with await Client.connect(self._socket, Role.EVICT) as client:
                    return await self._end_all(client, names, account_id)
        except (AtRestError, OSError) as error:  # TimeoutError is an OSError
            log.error("sessions not ended", account=account_id, cause=str(error))
            return "unknown"

    async def count(self, names: tuple[str, ...]) -> Remaining:
        """How many sessions an account has, by a list that may be some seconds old."""
        if self._socket is None:
            return "unknown"
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                async with await Client.connect(self._socket, Role.EVICT) as client:
                    return sum([int((await client.ask(Who(n)))["count"]) for n in names])
        except (AtRestError, OSError) as error:  # TimeoutError is an OSError
            log.error("sessions not counted", cause=str(error))
            return "unknown"

    async def _end_all(self, client: Client, names: tuple[str, ...], account_id: str) -> int:
        replies = [await client.ask(End(name, account_id)) for name in names]
        return sum(int(reply["remaining"]) for reply in replies)

    async def forget_unused(self, names_of: NamesOf) -> None:
        """Have the caches removed of accounts that nobody is logged in to.

        `names_of` gives the names of an account, None where its cache is to stay.
        """
        if self._socket is None:
            return
        try:
            async with asyncio.timeout(ASK_SECONDS):
                async with await Client.connect(self._socket, Role.EVICT) as client:
                    async for account_id in _all_caches(client):
                        names = await names_of(account_id)
                        if names is not None and not await _are_in(client, names):
                            await client.ask(Forget(account_id))
        except (AtRestError, OSError) as error:  # TimeoutError is an OSError
            log.error("caches not tidied", cause=str(error))


async def _all_caches(client: Client) -> AsyncIterator[str]:
    """The accounts that have a cache, asked for page by page."""
    last = ""
    while page := (await client.ask(Caches(last)))["accounts"]:
        for account_id in page:
            yield account_id
        last = page[-1]


async def _are_in(client: Client, names: tuple[str, ...]) -> bool:
    for name in names:
        if int((await client.ask(Who(name)))["count"]):
            return True
    return False


class EvictService:
    """The helper's verbs."""

    def __init__(self, config: Config, *, now: Callable[[], float] = time.monotonic) -> None:
        self._section = config.unlock.evict
        self._cache_root = config.unlock.cache_root
        self._cache_limit = config.unlock.cache_limit
        self._names = Names(config.names, config.lmtp.recipient_delimiter)
        self._now = now
        self._table: list[tuple[str, int]] = []
        self._table_at = float("-inf")

    async def answer(self, request: Request, _peer: Peer) -> Reply:
        """The one reply to a request; never raises."""
        try:
            match request:
                case Who(name):
                    return Reply("sessions", {"count": await self._count(name)})
                case End(name, account):
                    return await self._end(name, caches.checked_account_id(account))
                case Caches(after):
                    return await asyncio.to_thread(self._caches, after)
                case Forget(account):
                    await asyncio.to_thread(caches.remove_cache, self._cache_root, account)
                    log.info("cache removed", account=account)
                    return Reply("forgotten")
        except UsageError as error:
            return Reply("error", {"reason": str(error)})
        except (AtRestError, OSError, ValueError) as error:
            log.error("failed", cause=str(error))
        return Reply("temporary-failure")

    async def keep_limit(self) -> None:
        """Remove caches until all together are below the limit; never raises."""
        try:
            root, limit = self._cache_root, self._cache_limit
            for account in await asyncio.to_thread(caches.keep_below, root, limit):
                log.warning("cache removed: over the limit", account=account, limit=limit)
        except (AtRestError, OSError) as error:
            log.error("failed", cause=str(error))

    def _caches(self, after: str) -> Reply:
        found = caches.account_ids(self._cache_root)
        return Reply("caches", {"accounts": [one for one in found if one > after][:CACHES_PAGE]})

    async def _end(self, name: str, account: str) -> Reply:
        remaining = await self._count_now(name)
        if remaining:
            await self._end_each(name)
            remaining = await self._wait_until_out(name)
        await asyncio.to_thread(caches.remove_cache, self._cache_root, account)
        log.info("ended", account=account, remaining=remaining)
        return Reply("ended", {"remaining": remaining})

    async def _end_each(self, name: str) -> None:
        """Under each spelling that Dovecot knows; the command's exit status proves nothing."""
        for username in {row for row, _ in self._table if self._is(row, name)}:
            if UNSAFE_NAME.search(username):
                log.error("a session under a name that no command may be given", name=name)
            else:
                await run_command(self._section.end, username)

    async def _wait_until_out(self, name: str) -> int:
        loop = asyncio.get_running_loop()
        until = loop.time() + END_SECONDS
        while (remaining := await self._count_now(name)) and loop.time() < until:  # noqa: ASYNC110 - not ours to signal
            await asyncio.sleep(POLL_SECONDS)
        return remaining

    async def _count(self, name: str) -> int:
        """Sessions of a user, by a table that may be some seconds old."""
        if self._now() - self._table_at > TABLE_SECONDS:
            await self._look()
        return self._listed(name)

    async def _count_now(self, name: str) -> int:
        await self._look()
        return self._listed(name)

    def _listed(self, name: str) -> int:
        return sum(count for row, count in self._table if self._is(row, name))

    async def _look(self) -> None:
        """Make the table anew."""
        self._table_at = float("-inf")
        status, output = await run_command(self._section.who)
        if status != 0:
            message = f"the `who` command ended with {status}"
            raise TemporaryFailure(message)
        self._table, self._table_at = read_table(output), self._now()

    def _is(self, username: str, name: str) -> bool:
        try:
            return self._names.canonical(username) == self._names.canonical(name)
        except InvalidName:
            return username == name


def read_table(output: str) -> list[tuple[str, int]]:
    """Users and numbers of sessions from `doveadm -f tab who`, of 2.3 and 2.4."""
    rows = [line.split("\t") for line in output.split("\n") if line]
    return [
        (row[0], int(row[1]) if len(row) > 1 and row[1].isdecimal() else 1) for row in rows[1:]
    ]


async def run_command(command: str, name: str = "") -> tuple[int, str]:
    """Exit status and output of a configured command; `{name}` in it is the name, one argument.

    TemporaryFailure if it does not run or end.
    """
    arguments = [part.replace("{name}", name) for part in shlex.split(command)]
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        message = f"cannot run {arguments[0]}: {error}"
        raise TemporaryFailure(message) from error
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        message = f"{arguments[0]} did not end within {COMMAND_SECONDS:.0f} s"
        raise TemporaryFailure(message) from error
    return process.returncode or 0, output.decode("utf-8", "replace")


async def serve_evict(config: Config, stopping: asyncio.Event) -> None:
    """Run the helper until `stopping`; needs the rights that the two commands need."""
    section = config.unlock.evict
    if section.socket is None:
        message = "unlock.evict.socket is null: there is nothing to serve"
        raise UsageError(message)
    await asyncio.to_thread(caches.remove_all_caches, config.unlock.cache_root)
    service = EvictService(config)
    server = RoleServer(Role.EVICT, section.socket, uids_of(section.peers), service.answer)
    server.start()
    log.info("serving", socket=str(section.socket))
    limiting = asyncio.create_task(_keep_limit(service))
    try:
        await stopping.wait()
    finally:
        limiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await limiting
        await server.stop()


async def _keep_limit(service: EvictService) -> None:
    while True:
        await asyncio.sleep(LIMIT_SECONDS)
        await service.keep_limit()
