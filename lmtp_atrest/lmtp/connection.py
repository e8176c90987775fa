"""One LMTP connection below the commands: reading, replying, time limits, TLS, the end.

aiosmtpd is the engine: it is the asyncio protocol that joins transport, reader and writer and
starts `_handle_client` once a connection. What is overridden here and why:

* it cancels the handler when the client disconnects or half-closes, and 300 s after the last
  command: a delivery would be killed half way. Here nothing is cancelled; the end of the
  connection is an exception of the next read or reply.
* it logs what was received. Here nothing of a command or message reaches a log.
* its reader is limited to lines of 1,001 octets. Here bytes are read in blocks.
"""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass

from aiosmtpd.smtp import SMTP

from lmtp_atrest.delivery.replies import BYE, TIMED_OUT, Reply
from lmtp_atrest.lmtp.framing import CommandLine, CommandLines

READ_SIZE = 64 * 1024
HANDSHAKE_SECONDS = 30.0
QUIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may use."""

    idle_seconds: float = 300.0
    transaction_seconds: float = 3600.0
    message_size: int = 50 << 20
    recipients: int = 1000
    errors: int = 20


class PeerGone(Exception):
    """The client closed, or does not read its replies; there is nobody to answer."""


class Close(Exception):
    """The server ends the connection, with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _Hookless:
    """No handler: aiosmtpd looks up all attributes of it, and of the protocol, for every
    connection, to find those of its own kind, which took a fifth of the time of a delivery."""

    def __dir__(self) -> list[str]:
        return []


_NO_HOOKS = _Hookless()


class Connection(SMTP):
    """Bytes and time limits of one connection; `converse` is the subclass's."""

    line_length_limit = READ_SIZE  # of the StreamReader: it holds about twice as much

    def __init__(self, limits: Limits, hostname: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(
            _NO_HOOKS,
            hostname=hostname,
            data_size_limit=None,
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )
        self.limits = limits
        self.tls = tls
        self.secure = False
        self.lines = CommandLines()
        self.blocks_read = 0
        self._answers = b""
        self.deadline: float | None = None
        self._waits_until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.stop_reply: Reply | None = None
        self.receiving = False

    def __dir__(self) -> list[str]:
        """See _Hookless."""
        return []

    async def converse(self) -> None:
        """Talk to the client until PeerGone or Close."""
        raise NotImplementedError

    @property
    def peer_address(self) -> str:
        """The client's IP address, or "local" on a unix socket."""
        peer = self._writer.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else "local"

    @property
    def conversation(self) -> asyncio.Task[None] | None:
        """The task that runs this connection."""
        return self._handler_coroutine

    async def _handle_client(self) -> None:
        try:
            await self.converse()
        except PeerGone:
            pass
        except Close as close:
            with contextlib.suppress(PeerGone):
                await self.reply(close.reply)
                await self.flush()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._writer.close()

    async def next_line(self) -> CommandLine:
        """The next command line; one that takes longer than the idle limit ends the connection."""
        limit = self.loop.time() + self.limits.idle_seconds
        while (line := self.lines.next_line()) is None:
            if self.stop_reply is not None:
                raise Close(self.stop_reply)
            self.lines.feed(await self.read(limit))
        return line

    async def read(self, limit: float | None = None) -> bytes:
        """The next block; Close after the idle limit, `limit` or the transaction's deadline."""
        await self.flush()
        end = self.loop.time() + self.limits.idle_seconds if limit is None else limit
        if self.deadline is not None:
            end = min(end, self.deadline)
        self._wait_until(end)
        try:
            block = await self._reader.read(READ_SIZE)
        except OSError as error:
            raise PeerGone from error
        finally:
            self._waits_until = None
        if not block:
            raise PeerGone
        self.blocks_read += 1
        return block

    # One timer for the life of the connection, which is moved when it fires: most waits end soon,
    # and a timer for each would cost more than the wait.

    def _wait_until(self, end: float) -> None:
        self._waits_until = end
        if self._timer is None or end < self._timer.when():
            self._set_timer(end)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(when, self._timer_fired)

    def _timer_fired(self) -> None:
        end, self._timer = self._waits_until, None
        if end is None:
            return
        if end <= self.loop.time():
            self._reader.set_exception(Close(TIMED_OUT))
        else:
            self._set_timer(end)

    @property
    def unread(self) -> bool:
        """True where bytes have arrived that nobody has read yet."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    async def reply(self, *replies: Reply) -> None:
        """Answer a command. Goes out, with other answers, before the next wait for the client."""
        await self.send("".join(f"{reply}\r\n" for reply in replies).encode())

    async def send(self, text: bytes) -> None:
        """As `reply`, for text that is not made of single lines."""
        self._answers += text
        if len(self._answers) > READ_SIZE:
            await self.flush()

    async def flush(self) -> None:
        """Write what was answered, in one write (RFC 2920 3.2). Raises PeerGone.

        A client that does not read within the idle limit is gone.
        """
        if self._answers:
            self._writer.write(self._answers)
            self._answers = b""
        transport = self._writer.transport
        if not (transport.is_closing() or transport.get_write_buffer_size()):
            return  # the kernel has it all
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                await self._writer.drain()
        except Close:
            pass  # `drain` raises what `stop` left for the next read; what was written goes out
        except (TimeoutError, OSError) as error:
            if self.transport is not None:
                self.transport.abort()  # type: ignore[attr-defined]
            raise PeerGone from error

    async def say_goodbye(self) -> bool:
        """Answer QUIT; True where the client then closed in order, so it has read all replies.

        A client that is gone answers our bytes with a reset; one that closes without having read
        them does so too (RFC 2525 2.17).
        """
        await self.reply(BYE)
        await self.flush()
        with contextlib.suppress(OSError, NotImplementedError):
            self._writer.write_eof()
        limit = self.loop.time() + QUIT_SECONDS
        try:
            while True:
                await self.read(limit)
        except Close:
            return False
        except PeerGone:
            return self._reader.exception() is None

    async def secure_connection(self) -> None:
        """The TLS handshake (RFC 3207); nothing received before it counts afterwards."""
        await self.flush()
        # Cleared before, not after: `start_tls` takes the socket over before it waits, and the
        # client's first encrypted command may be read before it returns.
        self._reader._buffer.clear()  # type: ignore[attr-defined]
        assert self.tls is not None  # noqa: S101 - callers offer STARTTLS only with a context
        assert self.transport is not None  # noqa: S101 - for the type checker
        try:
            transport = await self.loop.start_tls(
                self.transport,  # type: ignore[arg-type]
                self,
                self.tls,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except (OSError, TimeoutError) as error:
            raise PeerGone from error
        if transport is None:
            raise PeerGone
        self._reader._transport = transport  # type: ignore[attr-defined]
        self._writer._transport = transport  # type: ignore[attr-defined]
        self._over_ssl = True
        self.transport = transport
        self.secure = True

    def stop(self, reply: Reply, *, now: bool) -> None:
        """End the connection at its next read; a message under way only if `now`.

        A commit under way is never touched: its replies go out first.
        """
        self.stop_reply = reply
        if now or not self.receiving:
            self._reader.set_exception(Close(reply))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; without Nagle's delay, which costs 40 ms a command against delayed ACKs.

        asyncio switches it off itself only where the listening socket names its protocol.
        """
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    # What aiosmtpd would do at these events is to cancel the handler; see the module's docstring.

    def _reset_timeout(self, duration: float | None = None) -> None:
        del duration

    def connection_lost(self, error: Exception | None) -> None:
        """Let the next read or reply find out."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    def eof_received(self) -> bool | None:
        """A client may half-close and still read its replies."""
        return asyncio.StreamReaderProtocol.eof_received(self)
