"""Ending IMAP sessions: the helper that runs as root, and the side of `unlock` that asks it.

A reader keeps its private keys until it disconnects, and Dovecot lets only root end sessions. So
a process of its own, with two verbs, runs the site's two commands and removes the user's index
cache in RAM. It must hold no key, and must take nothing from a peer that a command could read as
an option or a pattern: `doveadm kick '*'` ends everybody.
"""

import asyncio
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from lmtp_atrest.config import Config
from lmtp_atrest.config import Evict as EvictSection
from lmtp_atrest.errors import AtRestError, TemporaryFailure, UsageError
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.client import Client
from lmtp_atrest.unlock.protocol import End, Peer, Reply, Request, Role, Who
from lmtp_atrest.unlock.server import RoleServer, uids_of

log = logger("evict")

ACCOUNT_ID = re.compile(r"[0-9a-f]{32}")
UNSAFE_NAME = re.compile(r"^-|[*?\s\0-\x1f\x7f]")
COMMAND_SECONDS = 10.0
END_SECONDS = 3.0
POLL_SECONDS = 0.1
ASK_SECONDS = 30.0

Remaining: TypeAlias = int | Literal["unknown"]


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

    async def _end_all(self, client: Client, names: tuple[str, ...], account_id: str) -> int:
        replies = [await client.ask(End(name, account_id)) for name in names]
        return sum(int(reply["remaining"]) for reply in replies)


class EvictService:
    """The helper's two verbs."""

    def __init__(self, section: EvictSection, cache_root: Path) -> None:
        self._who_command = section.who
        self._end_command = section.end
        self._cache_root = cache_root

    async def answer(self, request: Request, _peer: Peer) -> Reply:
        """The one reply to a request; never raises."""
        try:
            match request:
                case Who(name):
                    return Reply("sessions", {"count": await self._count(name)})
                case End(name, account):
                    return await self._end(name, account)
        except UsageError as error:
            return Reply("error", {"reason": str(error)})
        except (AtRestError, OSError, ValueError) as error:
            log.error("failed", cause=str(error))
        return Reply("temporary-failure")

    async def _end(self, name: str, account: str) -> Reply:
        if ACCOUNT_ID.fullmatch(account) is None:
            message = "account is not an account id"
            raise UsageError(message)
        remaining = await self._count(name)
        if remaining:
            await run_command(self._end_command, name)  # its exit status proves nothing
            remaining = await self._wait_until_out(name)
        await asyncio.to_thread(remove_cache, self._cache_root, account)
        log.info("ended", account=account, remaining=remaining)
        return Reply("ended", {"remaining": remaining})

    async def _wait_until_out(self, name: str) -> int:
        loop = asyncio.get_running_loop()
        until = loop.time() + END_SECONDS
        while (remaining := await self._count(name)) and loop.time() < until:  # noqa: ASYNC110 - not ours to signal
            await asyncio.sleep(POLL_SECONDS)
        return remaining

    async def _count(self, name: str) -> int:
        status, output = await run_command(self._who_command, name)
        if status != 0:
            message = f"the `who` command ended with {status}"
            raise TemporaryFailure(message)
        return count_sessions(output, name)


def count_sessions(output: str, name: str) -> int:
    """Sessions of a user in the table of `doveadm -f tab who`: name, number, and more."""
    rows = (line.split("\t") for line in output.splitlines())
    return sum(
        int(row[1]) if len(row) > 1 and row[1].isdecimal() else 1
        for row in rows
        if row[0].lower() == name.lower()
    )


async def run_command(command: str, name: str) -> tuple[int, str]:
    """Exit status and output of a configured command for one user.

    UsageError for a name that a command could misread, TemporaryFailure if it does not run or end.
    """
    if not name or UNSAFE_NAME.search(name):
        message = "name is not one that a command may be given"
        raise UsageError(message)
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


def remove_cache(root: Path, account_id: str) -> None:
    """Remove an account's directory below the cache root, following no link anywhere.

    The root lies in a directory that everybody may write to. Nothing there is no error.
    """
    if ACCOUNT_ID.fullmatch(account_id) is None:
        message = "not an account id"
        raise UsageError(message)
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"the cache root {root} is not a directory of ours: {error}"
        raise TemporaryFailure(message) from error
    try:
        # rmtree works by descriptors below `directory` and refuses a link as its start.
        shutil.rmtree(account_id, dir_fd=directory, onerror=_report)
    finally:
        os.close(directory)


def remove_all_caches(root: Path) -> None:
    """Remove every account's cache: at the start no vault is open, so none should be there."""
    try:
        accounts = [path.name for path in root.iterdir() if ACCOUNT_ID.fullmatch(path.name)]
    except OSError:
        return  # not there yet, or not to be read: then there is nothing of ours in it
    for account_id in accounts:
        remove_cache(root, account_id)


def _report(_function: Callable[..., object], path: str, cause: object) -> None:
    kind = cause[0] if isinstance(cause, tuple) else type(cause)
    if kind is not FileNotFoundError:
        log.error("cache not removed", path=path, cause=getattr(kind, "__name__", ""))


async def serve_evict(config: Config, stopping: asyncio.Event) -> None:
    """Run the helper until `stopping`; needs the rights that the two commands need."""
    section = config.unlock.evict
    if section.socket is None:
        message = "unlock.evict.socket is null: there is nothing to serve"
        raise UsageError(message)
    await asyncio.to_thread(remove_all_caches, config.unlock.cache_root)
    service = EvictService(section, config.unlock.cache_root)
    server = RoleServer(Role.EVICT, section.socket, uids_of(section.peers), service.answer)
    server.start()
    log.info("serving", socket=str(section.socket))
    try:
        await stopping.wait()
    finally:
        await server.stop()
