"""Listens on the sockets it is given, bounds the number of connections, and stops in order."""

import asyncio
import socket
import ssl
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from lmtp_atrest.config import Lmtp
from lmtp_atrest.delivery.replies import STOPPING, TOO_MANY_CONNECTIONS
from lmtp_atrest.delivery.trouble import report
from lmtp_atrest.lmtp.connection import Limits
from lmtp_atrest.lmtp.session import Delivery, Session
from lmtp_atrest.telemetry import logger

log = logger("lmtp")

# Together below the 30 s after which a supervisor kills: messages still being received may end,
# then whoever sends slowly is told 421; commits that still run may end.
RECEIVE_SECONDS = 20.0
COMMIT_SECONDS = 8.0

# The socket is shared by all workers: one that ends must not remove its path (Python 3.13 does).
KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


async def serve(
    sockets: Sequence[socket.socket], settings: Lmtp, delivery: Delivery, stopping: asyncio.Event
) -> None:
    """Serve until `stopping` is set, then drain: every dot already sent gets its replies.

    The sockets are listening ones, TCP or unix; the caller owns what they are bound to. A TCP
    socket beyond loopback speaks STARTTLS and requires it, with the certificate of the settings.
    """
    server = _Server(settings, delivery)
    listeners = [await server.listen(sock) for sock in sockets]
    try:
        await stopping.wait()
    finally:
        for listener in listeners:
            listener.close()
        await server.drain()


class _TurnedAway(asyncio.Protocol):
    """A connection beyond the limit: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(f"{TOO_MANY_CONNECTIONS}\r\n".encode())  # type: ignore[attr-defined]
        transport.close()


class _TrackedSession(Session):
    """A session that its server knows from the first byte to the last."""

    server: "_Server"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.server.sessions.add(self)
        super().connection_made(transport)

    async def _handle_client(self) -> None:
        try:
            await super()._handle_client()
        except ConnectionError as error:
            log.info("client gone", cause=str(error))
        except Exception as error:
            report("lmtp", "session failed", error)
        finally:
            self.server.sessions.discard(self)


class _Server:
    def __init__(self, settings: Lmtp, delivery: Delivery) -> None:
        self.sessions: set[_TrackedSession] = set()
        self._delivery = delivery
        self._max_connections = settings.max_connections
        self._hostname = socket.gethostname()
        self._tls = _tls_context(settings)
        self._limits = Limits(
            idle_seconds=settings.idle_timeout,
            transaction_seconds=settings.transaction_timeout,
            message_size=settings.max_message_size,
            recipients=settings.max_recipients,
        )

    async def listen(self, sock: socket.socket) -> asyncio.Server:
        tls = None if _private(sock) else self._tls
        if tls is None and not _private(sock):
            message = "a socket beyond loopback, and no TLS certificate"
            raise ValueError(message)
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(
                lambda: self._protocol(tls), sock=sock, **KEEP_PATH
            )
        return await loop.create_server(lambda: self._protocol(tls), sock=sock)

    def _protocol(self, tls: ssl.SSLContext | None) -> asyncio.BaseProtocol:
        if len(self.sessions) >= self._max_connections:
            log.warning("too many connections", limit=self._max_connections)
            return _TurnedAway()
        session = _TrackedSession(self._delivery, self._limits, self._hostname, tls)
        session.server = self
        return session

    async def drain(self) -> None:
        for now, seconds in ((False, RECEIVE_SECONDS), (True, COMMIT_SECONDS)):
            for session in tuple(self.sessions):
                session.stop(STOPPING, now=now)
            await self._ended(seconds)
        for task in self._tasks():
            log.error("session did not end in time")
            task.cancel()

    def _tasks(self) -> list[asyncio.Task[None]]:
        tasks = (session.conversation for session in self.sessions)
        return [task for task in tasks if task is not None]

    async def _ended(self, seconds: float) -> None:
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=seconds)


def _private(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or ip_address(sock.getsockname()[0]).is_loopback


def _tls_context(settings: Lmtp) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    return context
