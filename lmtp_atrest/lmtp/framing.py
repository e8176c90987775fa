"""Where lines and messages end, without any socket.

Only CRLF ends a line and only CRLF.CRLF ends a message (RFC 5321 2.3.8, 4.1.1.4). A server that
also takes another ending lets one sender smuggle a second message past the MTA's checks.

One rule for odd bytes in a message: a CR or LF that is not part of a CRLF never ends the message;
a bare LF is stored as a line end, a bare CR as a space, a NUL as it is. So a stored message has LF
as its only line end and no CR, which keeps the sizes in the Maildir name exact, and no message
bounces for a byte. In a command all three are refused.
"""

import re
from dataclasses import dataclass

COMMAND_LIMIT = 2048  # RFC 5321 4.5.3.1.4 asks for 512; SMTPUTF8 and long VERP senders need more
END_OF_DATA = b"\r\n.\r\n"
# One search for both, the end and what is to be unstuffed: most blocks have neither.
_LINE_WITH_DOT = re.compile(rb"\r\n\.")
_BARE_CR = re.compile(rb"\r(?!\n)")
_PREFIXES = tuple(END_OF_DATA[:length] for length in range(len(END_OF_DATA) - 1, 0, -1))


class DataDecoder:
    """Turns what follows DATA into the message: dots unstuffed, LF line ends.

    Memory is bounded by the size of one block, whatever the length of message or line.
    """

    def __init__(self) -> None:
        # The CRLF of the DATA command counts: a dot on the very first line ends the message.
        self._kept = b"\r\n"
        self._at_start = True
        self.done = False
        self.rest = b""
        self.size = 0  # so far, as SIZE counts it (RFC 1870): CRLF ends, without stuffed dots

    def feed(self, block: bytes) -> bytes:
        """Take the next bytes of the connection and give out the next bytes of the message.

        When `done`, `rest` holds what follows the end of the message; feed nothing more then.
        """
        buffer = self._kept + block
        dot = _LINE_WITH_DOT.search(buffer)
        end = buffer.find(END_OF_DATA, dot.start()) if dot else -1
        if end >= 0:
            self.done, self.rest = True, buffer[end + len(END_OF_DATA) :]
            return self._decode(buffer[: end + 2], stuffed=True)
        keep = next((len(p) for p in _PREFIXES if buffer.endswith(p)), 0)
        body = buffer[: len(buffer) - keep]
        self._kept = buffer[len(body) :]
        return self._decode(body, stuffed=dot is not None)

    def _decode(self, body: bytes, *, stuffed: bool) -> bytes:
        if stuffed:
            body = body.replace(b"\r\n.", b"\r\n")
        self.size += len(body)
        if _BARE_CR.search(body):
            plain = body.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        else:
            plain = body.translate(None, b"\r")  # a third of the time of the other way
        if self._at_start and plain:
            self._at_start = False
            self.size -= 2
            return plain[1:]
        return plain


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One line without its CRLF; `good` is False where it must be answered 500 5.5.2."""

    text: bytes
    good: bool = True


class CommandLines:
    """Takes bytes of the connection apart into command lines; memory is bounded."""

    def __init__(self) -> None:
        self._buffer = b""
        self._skipping = False

    def feed(self, block: bytes) -> None:
        """Add what was read."""
        self._buffer += block

    def take_rest(self) -> bytes:
        """All bytes not yet read as commands: the beginning of a message, after DATA."""
        rest, self._buffer = self._buffer, b""
        return rest

    @property
    def empty(self) -> bool:
        """True where the client has sent nothing beyond the last line."""
        return not self._buffer and not self._skipping

    def next_line(self) -> CommandLine | None:
        """The next line, or None until more is fed.

        A bare LF ends a line too, but a refused one: waiting for CRLF instead would let the
        client's next command vanish into this one.
        """
        line, found, rest = self._buffer.partition(b"\n")
        if not found:
            if len(self._buffer) > COMMAND_LIMIT:
                self._buffer, self._skipping = b"", True
            return None
        self._buffer = rest
        too_long, self._skipping = self._skipping or len(line) > COMMAND_LIMIT, False
        if too_long or not line.endswith(b"\r") or b"\r" in line[:-1] or b"\0" in line:
            return CommandLine(b"", good=False)
        return CommandLine(line[:-1])
