"""The unlock sockets: who may connect, how long, how many. What is asked is decided elsewhere.

A connection whose peer is not one of the role's users is closed before a byte of it is read: the
accepting loop asks the kernel (SO_PEERCRED) before asyncio gets to see the socket. That works in
one user namespace only, so a unit must not set PrivateUsers (it makes every peer uid 65534).
"""

import asyncio
import contextlib
import os
import pwd
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from lmtp_atrest.errors import ConfigError, TemporaryFailure
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.protocol import (
    Lines,
    Peer,
    ProtocolError,
    Reply,
    encode_reply,
    error_reply,
    greeting,
    parse_request,
)
from lmtp_atrest.unlock.requests import Request, Role

log = logger("unlock")

MAX_CONNECTIONS = 500  # per socket; one more is told `busy` and closed
IDLE_SECONDS = 300.0  # without a complete request; also for a peer that does not read
DRAIN_SECONDS = 30.0  # for requests under way when the service stops
READ_BYTES = 64 * 1024
# Connecting to a full backlog blocks, or fails in asyncio's own way; logins come in bursts.
BACKLOG = 1024
PATH_BYTES = 107  # sockaddr_un.sun_path without its NUL

Answer: TypeAlias = Callable[[Request, Peer], Awaitable[Reply]]


def uids_of(users: Iterable[str]) -> frozenset[int]:
    """The uids of user names (or numbers); one that does not exist here is logged and left out."""
    uids = set()
    for user in users:
        try:
            uids.add(int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid)
        except KeyError:
            log.warning("peer has no user on this machine", user=user)
    return frozenset(uids)


class RoleServer:
    """One unix socket of one role."""

    def __init__(
        self,
        role: Role,
        path: Path,
        peers: frozenset[int],
        answer: Answer,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.role = role
        self.path = path
        self._peers = peers
        self._answer = answer
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. ConfigError for a path that cannot be, TemporaryFailure if another listens."""
        self._listener = listen(self.path, self._mode())
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def stop(self) -> None:
        """Accept no more, let requests under way be answered, and close."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        if self._listener is not None:
            self._listener.close()
            self.path.unlink(missing_ok=True)
        for task, connection in self._connections.items():
            connection.finish(task)
        if self._connections:
            _done, late = await asyncio.wait(self._connections, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()

    def _mode(self) -> int:
        """Open to all where another user is a peer: the kernel's word on the uid decides then."""
        return 0o600 if self._peers <= {0, os.geteuid()} else 0o666

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the peer has gone already
                log.error("accept failed", role=self.role, cause=str(error))
                await asyncio.sleep(0.1)
                continue
            uid = _peer_uid(connected)
            if uid not in self._peers:
                log.warning("peer refused", role=self.role, uid=uid)
                connected.close()
            elif len(self._connections) >= self._max_connections:
                log.warning("too many connections", role=self.role)
                with contextlib.suppress(OSError):
                    connected.send(encode_reply(Reply("busy"), self.role))
                connected.close()
            else:
                self._begin(connected, Peer(self.role, uid))

    def _begin(self, connected: socket.socket, peer: Peer) -> None:
        connection = _Connection(connected, peer, self._answer, self._idle_seconds)
        task = asyncio.create_task(connection.run())
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)


class _Connection:
    """Requests of one peer, one after the other."""

    def __init__(
        self, connected: socket.socket, peer: Peer, answer: Answer, idle_seconds: float
    ) -> None:
        self._socket = connected
        self._peer = peer
        self._answer = answer
        self._idle_seconds = idle_seconds
        self._answering = False
        self._finishing = False

    def finish(self, task: asyncio.Task[None]) -> None:
        """End now, or after the reply to the request under way."""
        self._finishing = True
        if not self._answering:
            task.cancel()

    async def run(self) -> None:
        """Greet, then answer lines until the peer goes, idles too long, or breaks the framing."""
        reader, writer = await asyncio.open_unix_connection(sock=self._socket)
        try:
            writer.write(greeting(self._peer.role))
            await self._converse(reader, writer)
        except (TimeoutError, OSError):
            log.debug("connection ended", role=self._peer.role)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = Lines()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._idle_seconds
        while not self._finishing:
            async with asyncio.timeout_at(deadline):
                data = await reader.read(READ_BYTES)
            if not data:
                return
            try:
                for line in lines.feed(data):
                    await self._exchange(line, writer)
                    deadline = loop.time() + self._idle_seconds
                    if self._finishing:
                        return
            except ProtocolError as error:  # from feed: no line after this one can be found
                await self._send(error_reply(error), writer)
                return

    async def _exchange(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        self._answering = True
        try:
            reply = await self._answer(parse_request(line, self._peer.role), self._peer)
        except ProtocolError as error:
            log.warning("not a request", role=self._peer.role, reason=error.public)
            reply = error_reply(error)
        await self._send(reply, writer)
        self._answering = False

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        try:
            line = encode_reply(reply, self._peer.role)
        except ValueError as error:
            log.error("reply does not fit the socket", cause=str(error))
            line = encode_reply(Reply("temporary-failure"), self._peer.role)
        writer.write(line)
        async with asyncio.timeout(self._idle_seconds):
            await writer.drain()


def listen(path: Path, mode: int) -> socket.socket:
    """A listening unix socket of this mode, in place of one that nobody serves any more."""
    if len(os.fsencode(path)) > PATH_BYTES - len(".new"):
        raise ConfigError([f"unlock.sockets: {path} is too long for a unix socket"])
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        # Bound under another name until its mode is right: nobody can connect in between.
        listener.bind(str(fresh))
        fresh.chmod(mode)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        fresh.rename(path)
    except OSError as error:
        message = f"cannot listen on {path}: {error}"
        raise TemporaryFailure(message) from error
    return listener


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            message = f"{path} is there and is not a socket"
            raise TemporaryFailure(message)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    message = f"another process serves {path}"
    raise TemporaryFailure(message)


def _peer_uid(connected: socket.socket) -> int:
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack(
        "3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(uid)
