"""The other end of the unlock sockets: for the command line, and for `unlock` asking `evict`.

A reply that stands for an error becomes the error class it was on the other side. Requests and
replies hold secrets; nothing here logs them.
"""

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from lmtp_atrest.crypto.dcrypt import MessageKey
from lmtp_atrest.crypto.dcrypt_header import Header, WrongKey
from lmtp_atrest.errors import (
    Alarm,
    AtRestError,
    BadCode,
    Busy,
    Conflict,
    Damaged,
    NotFound,
    TemporaryFailure,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.protocol import (
    REPLY_LIMIT,
    Lines,
    Reply,
    check_greeting,
    encode_request,
    parse_reply,
)
from lmtp_atrest.unlock.requests import ConvertUnwrap, Request, Role, Unwrap

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 60.0  # `account-enable` waits for its barrier and for sessions to end
READ_BYTES = 64 * 1024

ERRORS: dict[str, type[AtRestError]] = {
    "wrong-secret": WrongSecret,
    "no-such-session": NotFound,
    "not-found": NotFound,
    "no-such-key": WrongKey,
    "damaged": Damaged,
    "conflict": Conflict,
    "wrong-state": WrongState,
    "invalid-name": UsageError,
    "usage": UsageError,
    "bad-code": BadCode,
    "error": UsageError,
    "alarm": Alarm,
    "temporary-failure": TemporaryFailure,
}


def checked(reply: Reply) -> Reply:
    """The reply itself, or the error it stands for."""
    if reply.result == "busy":
        message = "the unlock service is busy"
        raise Busy(message, float(reply.get("retry_after", 1.0)))
    if error := ERRORS.get(reply.result):
        raise error(str(reply.get("reason") or reply.result.replace("-", " ")))
    return reply


class Client:
    """A connection from asyncio; requests one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    @classmethod
    async def connect(cls, path: Path, role: Role) -> Self:
        """Connect and read the greeting; TemporaryFailure where nobody of this kind answers."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path, limit=REPLY_LIMIT)
        except OSError as error:
            raise _unreachable(path, error) from error
        client = cls(reader, writer)
        try:
            _check_first(await client._line(CONNECT_SECONDS), role)
        except OSError as error:
            await client.close()
            raise _unreachable(path, error) from error
        except BaseException:
            await client.close()
            raise
        return client

    async def ask(self, request: Request) -> Reply:
        """The reply to a request, or the error it stands for."""
        async with self._lock:
            try:
                self._writer.write(encode_request(request))
                await self._writer.drain()
                return checked(parse_reply(await self._line(REPLY_SECONDS)))
            except OSError as error:
                raise _gone() from error

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return

    async def _line(self, seconds: float) -> bytes:
        async with asyncio.timeout(seconds):
            try:
                return (await self._reader.readuntil(b"\n"))[:-1]
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise _gone() from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()


class SyncClient:
    """The same without an event loop, for the command line."""

    def __init__(self, path: Path, role: Role) -> None:
        """Connect and read the greeting; TemporaryFailure where nobody of this kind answers."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lines = Lines(REPLY_LIMIT)
        self._ready: list[bytes] = []
        try:
            self._socket.settimeout(CONNECT_SECONDS)
            self._socket.connect(str(path))
            _check_first(self._line(), role)
            self._socket.settimeout(REPLY_SECONDS)
        except OSError as error:
            self._socket.close()
            raise _unreachable(path, error) from error
        except BaseException:
            self._socket.close()
            raise

    def ask(self, request: Request) -> Reply:
        """The reply to a request, or the error it stands for."""
        try:
            self._socket.sendall(encode_request(request))
            return checked(parse_reply(self._line()))
        except OSError as error:
            raise _gone() from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _line(self) -> bytes:
        while not self._ready:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise _gone()
            self._ready.extend(self._lines.feed(data))
        return self._ready.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class SocketUnwrap:
    """Message keys by `unwrap` over a socket: a `dcrypt.Unwrap`."""

    def __init__(self, client: SyncClient, token: str) -> None:
        self._client = client
        self._token = token

    def __call__(self, header: Header) -> MessageKey:
        """The key of the message with this header; WrongKey, Damaged, TemporaryFailure."""
        with _no_end():
            reply = self._client.ask(Unwrap(self._token, header.raw))
        return MessageKey(Secret(base64.b64decode(str(reply["key"]))))


class GrantUnwrap:
    """Message keys under a grant: a `dcrypt.Unwrap` for any number of threads, with a connection
    for each."""

    def __init__(self, path: Path, role: Role, grant: str) -> None:
        self._path, self._role, self._grant = path, role, grant
        self._local = threading.local()
        self._clients: list[SyncClient] = []

    def close(self) -> None:
        """Hang up; no thread uses it any more."""
        for client in self._clients:
            client.close()

    def __call__(self, header: Header) -> MessageKey:
        """The key of the message with this header; WrongKey, Damaged, TemporaryFailure."""
        client: SyncClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = SyncClient(self._path, self._role)
            self._clients.append(client)
        with _no_end():
            reply = client.ask(ConvertUnwrap(self._grant, header.raw))
        return MessageKey(Secret(base64.b64decode(str(reply["key"]))))


@contextmanager
def _no_end() -> Iterator[None]:
    """Whoever walks over mail takes NotFound for a message that moved, and would go on."""
    try:
        yield
    except NotFound as error:
        message = f"the mail is closed again ({error}): call again"
        raise TemporaryFailure(message) from error


def _check_first(line: bytes, role: Role) -> None:
    if b'"busy"' in line:
        checked(parse_reply(line))
    check_greeting(line, role)


def _unreachable(path: Path, error: OSError) -> TemporaryFailure:
    reason = error.strerror or type(error).__name__
    return TemporaryFailure(f"no unlock service at {path} ({reason}): is it running?")


def _gone() -> TemporaryFailure:
    return TemporaryFailure(
        "the unlock service closed the connection: this user may not be one of the socket's peers"
    )
