"""The commands of LMTP (RFC 2033), and one reply for each accepted recipient in every outcome.

Decisions about recipients and messages are the delivery's; this module keeps the order of
commands, the parameters and the counting. An exception of the delivery becomes 4xx, never 500, and
its text goes nowhere. Not offered, so refused: CHUNKING (its octets would be read as commands, so
the connection is closed), AUTH, VRFY, EXPN, and HELO and EHLO, which are not LMTP.
"""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.replies import Refused, Reply, reply_for
from lmtp_atrest.delivery.trace import Client
from lmtp_atrest.delivery.trouble import report
from lmtp_atrest.lmtp.connection import Close, Connection, Limits, PeerGone
from lmtp_atrest.lmtp.framing import CommandLine, DataDecoder
from lmtp_atrest.names import Address, InvalidName, NeedsUtf8, parse_path
from lmtp_atrest.telemetry import logger

log = logger("lmtp")

# A browser made to talk to this port (cross-protocol attack) is cut off at its first line.
HTTP_VERBS = frozenset(
    {b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH", b"TRACE"}
)
BEFORE_TLS = frozenset({b"LHLO", b"STARTTLS", b"NOOP", b"QUIT"})


class Transaction(Protocol):
    """One message on its way to its recipients."""

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes of the message, LF line ends."""

    async def finish(self) -> list[Reply]:
        """Store it durably; one reply per recipient, in their order."""
        ...

    async def abort(self) -> None:
        """Forget it; nothing of it stays."""

    def confirmed(self) -> None:
        """The client has read the replies of `finish`."""

    def unclear(self) -> None:
        """The connection ended, and nothing shows that the client has read them."""


class Delivery(Protocol):
    """Who is asked about recipients, and stores messages."""

    async def recipient(self, address: Address) -> Any:
        """Accept a recipient, or raise Refused."""

    def begin(
        self, sender: Address | None, recipients: Sequence[Any], client: Client
    ) -> Transaction:
        """Start a message for recipients that were accepted."""
        ...


class _Parameters:
    """ESMTP parameters of MAIL: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531)."""

    def __init__(self, rest: bytes) -> None:
        given = [part.upper().partition(b"=") for part in rest.split()]
        values = {name: value for name, _, value in given}
        if len(values) != len(given):
            raise Refused(replies.BAD_SYNTAX)
        size = values.pop(b"SIZE", b"0")
        body = values.pop(b"BODY", b"8BITMIME")
        utf8 = values.pop(b"SMTPUTF8", None)
        if values:
            raise Refused(replies.BAD_PARAMETER)
        if not (size.isdigit() and len(size) <= 20) or body not in (b"7BIT", b"8BITMIME") or utf8:
            raise Refused(replies.BAD_SYNTAX)
        self.utf8 = utf8 is not None
        self.size = int(size)


class Session(Connection):
    """The commands of one connection."""

    def __init__(
        self, delivery: Delivery, limits: Limits, hostname: str, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(limits, hostname, tls)
        self._delivery = delivery
        self._errors = 0
        self._helo: str | None = None
        # Answered messages, each with the block count after which a command proves that its
        # replies were read; what arrived before the replies went out proves nothing.
        self._answered: list[tuple[Transaction, int]] = []
        self._reset()

    def _reset(self) -> None:
        self._sender: Address | None = None
        self._has_sender = False
        self._utf8 = False
        self._recipients: list[Any] = []
        self.deadline = None

    async def converse(self) -> None:
        """Greet, then one command after the other."""
        await self.reply(Reply(220, "", f"{self.hostname} LMTP ready"))
        try:
            while True:
                await self._answer(await self.next_line())
        finally:
            if self._answered:
                log.info("client did not show that it read replies", messages=len(self._answered))
            for transaction, _ in self._answered:
                transaction.unclear()

    async def _answer(self, line: CommandLine) -> None:
        verb, _, argument = line.text.partition(b" ")
        verb = verb.upper()
        self._confirm_answered()
        if self.stop_reply is not None and verb != b"QUIT":
            raise Close(self.stop_reply)
        try:
            await self._dispatch(line, verb, argument)
        except Refused as refused:
            await self.reply(refused.reply)

    async def _dispatch(self, line: CommandLine, verb: bytes, argument: bytes) -> None:
        if not line.good:
            await self._error(replies.BAD_LINE)
        elif verb in HTTP_VERBS:
            raise Close(replies.NOT_A_COMMAND)
        elif verb not in _COMMANDS or (verb == b"STARTTLS" and self.tls is None):
            await self._error(replies.NOT_A_COMMAND)
        elif self.tls is not None and not self.secure and verb not in BEFORE_TLS:
            await self.reply(replies.TLS_FIRST)
        else:
            await _COMMANDS[verb](self, argument.strip(b" "))

    def _confirm_answered(self) -> None:
        for transaction, blocks in self._answered:
            if self.blocks_read > blocks:
                transaction.confirmed()
        self._answered = [one for one in self._answered if self.blocks_read <= one[1]]

    async def _error(self, reply: Reply) -> None:
        """Reply to what no well-behaved client sends; too much of it ends the connection."""
        self._errors += 1
        if self._errors > self.limits.errors:
            raise Close(replies.TOO_MANY_ERRORS)
        await self.reply(reply)

    async def _lhlo(self, argument: bytes) -> None:
        if not argument:
            raise Refused(replies.BAD_SYNTAX)
        self._reset()
        self._helo = argument.decode("ascii", "replace")
        keywords = [
            self.hostname,
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
            f"SIZE {self.limits.message_size}",
            "8BITMIME",
            "SMTPUTF8",
            *(["STARTTLS"] if self.tls is not None and not self.secure else []),
        ]
        lines = [f"250-{keyword}\r\n" for keyword in keywords[:-1]]
        await self.send("".join([*lines, f"250 {keywords[-1]}\r\n"]).encode())

    async def _mail(self, argument: bytes) -> None:
        if self._helo is None or self._has_sender:
            raise Refused(replies.WRONG_ORDER)
        address, rest = self._path(argument, b"FROM:", replies.MALFORMED_SENDER)
        given = _Parameters(rest)
        self._check_utf8(address, allowed=given.utf8)
        if given.size > self.limits.message_size:
            raise Refused(replies.TOO_LARGE)
        self._sender, self._has_sender, self._utf8 = address, True, given.utf8
        self.deadline = self.loop.time() + self.limits.transaction_seconds
        await self.reply(replies.SENDER_OK)

    async def _rcpt(self, argument: bytes) -> None:
        if not self._has_sender:
            raise Refused(replies.WRONG_ORDER)
        if len(self._recipients) >= self.limits.recipients:
            raise Refused(replies.TOO_MANY_RECIPIENTS)
        address, rest = self._path(argument, b"TO:", replies.MALFORMED_RECIPIENT)
        if address is None:
            raise Refused(replies.MALFORMED_RECIPIENT)
        if rest:
            raise Refused(replies.BAD_PARAMETER)
        self._check_utf8(address, allowed=self._utf8)
        self._recipients.append(await self._accepted(address))
        await self.reply(replies.RECIPIENT_OK)

    async def _accepted(self, address: Address) -> Any:
        try:
            return await self._delivery.recipient(address)
        except Refused:
            raise
        except Exception as error:
            report("lmtp", "recipient not looked up", error)
            raise Refused(reply_for(error)) from error

    @staticmethod
    def _path(argument: bytes, keyword: bytes, bad: Reply) -> tuple[Address | None, bytes]:
        if not argument.upper().startswith(keyword):
            raise Refused(replies.BAD_SYNTAX)
        try:
            return parse_path(argument[len(keyword) :], utf8=True)
        except NeedsUtf8 as error:
            raise Refused(replies.NEEDS_SMTPUTF8) from error
        except InvalidName as error:
            raise Refused(bad) from error

    @staticmethod
    def _check_utf8(address: Address | None, *, allowed: bool) -> None:
        if address is not None and not allowed and not address.name.isascii():
            raise Refused(replies.NEEDS_SMTPUTF8)

    async def _data(self, argument: bytes) -> None:
        if argument:
            raise Refused(replies.BAD_SYNTAX)
        if not self._recipients:
            raise Refused(replies.NO_RECIPIENT)
        client = Client(self._helo or "", self.peer_address, tls=self.secure, utf8=self._utf8)
        recipients = self._recipients
        try:
            transaction = self._delivery.begin(self._sender, recipients, client)
        except Exception as error:
            report("lmtp", "message not begun", error)
            raise Refused(reply_for(error)) from error
        answers = await self._take_message(transaction, len(recipients))
        self._reset()
        self._answered.append((transaction, self.blocks_read + self.unread))
        await self.reply(*answers)
        await self.flush()

    async def _take_message(self, transaction: Transaction, count: int) -> list[Reply]:
        """Read the message and have it stored: always `count` replies, unless the client goes."""
        self.receiving = True
        try:
            await self.reply(replies.SEND_DATA)
            refusal = await self._receive(transaction)
        except BaseException:
            await transaction.abort()
            raise
        finally:
            self.receiving = False
        if refusal is not None:
            return [refusal] * count
        try:
            answers = await transaction.finish()
        except Exception as error:
            report("lmtp", "message not stored", error)
            return [reply_for(error)] * count
        if len(answers) != count:
            log.critical("wrong number of replies", replies=len(answers), recipients=count)
            return [replies.TEMPORARY] * count
        return answers

    async def _receive(self, transaction: Transaction) -> Reply | None:
        """Read to the end of the message, also of a refused one; the refusal, or None."""
        decoder = DataDecoder()
        refusal: Reply | None = None
        block = self.lines.take_rest()
        while True:
            chunk = decoder.feed(block)
            if refusal is None:
                refusal = await self._write(transaction, chunk, decoder.size)
            if decoder.done:
                self.lines.feed(decoder.rest)
                return refusal
            block = await self.read()

    async def _write(self, transaction: Transaction, chunk: bytes, size: int) -> Reply | None:
        try:
            if size > self.limits.message_size:
                await transaction.abort()
                return replies.TOO_LARGE
            if chunk:
                await transaction.write(chunk)
        except Exception as error:
            report("lmtp", "message not taken", error)
            await transaction.abort()
            return reply_for(error)
        return None

    async def _rset(self, argument: bytes) -> None:
        if argument:
            raise Refused(replies.BAD_SYNTAX)
        self._reset()
        await self.reply(replies.OK)

    async def _noop(self, argument: bytes) -> None:
        del argument
        await self.reply(replies.OK)

    async def _quit(self, argument: bytes) -> None:
        if argument:
            raise Refused(replies.BAD_SYNTAX)
        in_order = await self.say_goodbye()
        if in_order:
            for transaction, _ in self._answered:
                transaction.confirmed()
            self._answered.clear()
        raise PeerGone

    async def _bdat(self, argument: bytes) -> None:
        del argument
        raise Close(replies.NO_CHUNKING)

    async def _starttls(self, argument: bytes) -> None:
        if argument or self.secure:
            raise Refused(replies.BAD_SYNTAX if argument else replies.WRONG_ORDER)
        if not self.lines.empty or self.unread:
            raise Close(replies.NO_PIPELINED_TLS)
        await self.reply(replies.READY_FOR_TLS)
        await self.secure_connection()
        self._helo = None
        self._reset()


_COMMANDS: dict[bytes, Callable[[Session, bytes], Awaitable[None]]] = {
    b"LHLO": Session._lhlo,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"DATA": Session._data,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"QUIT": Session._quit,
    b"BDAT": Session._bdat,
    b"STARTTLS": Session._starttls,
}
