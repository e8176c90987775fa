"""The lines this program puts before every stored message: Return-Path, Delivered-To, Received.

They are first in every file, plain ones too, so a stored file begins with the magic of the message
format only where we sealed it. Every value comes from the address grammar or is checked here; no
byte a peer chose reaches a line unchecked.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from lmtp_atrest.names import Address

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_RETURN_PATH = re.compile(rb"^return-path[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.I | re.M)


@dataclass(frozen=True, slots=True)
class Client:
    """Who hands the message over, for the Received line."""

    helo: str = "unknown"
    peer: str = "local"
    tls: bool = False
    utf8: bool = False

    @property
    def protocol(self) -> str:
        """The `with` keyword (RFC 3848, RFC 6531 4.3)."""
        return ("UTF8" if self.utf8 else "") + "LMTP" + ("S" if self.tls else "")


def trace_lines(
    sender: Address | None,
    recipient: Address,
    client: Client,
    host: str,
    message_id: str,
    at: float,
) -> bytes:
    """The three lines (RFC 5321 4.4 for two of them), LF ends, in their fixed order."""
    date = _date(int(at))
    lines = (
        f"Return-Path: <{sender or ''}>\n"
        f"Delivered-To: {recipient}\n"
        f"Received: from {_host(client.helo)} ({_host(client.peer)})\n"
        f"\tby {_host(host)} with {client.protocol} (lmtp-atrest) id {message_id};\n"
        f"\t{date}\n"
    )
    return lines.encode()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))


def _host(text: str) -> str:
    return text if _HOST.fullmatch(text) else "unknown"


def header_end(head: bytes) -> int:
    """Where the header of a message with LF line ends is over; all of `head` if not inside it."""
    if head.startswith(b"\n"):
        return 0
    end = head.find(b"\n\n")
    return len(head) if end < 0 else end + 1


def without_return_path(head: bytes) -> bytes:
    """The head of a message without Return-Path fields: the one we add is the only one."""
    end = header_end(head)
    header = head[:end]
    if b"return-path" not in header.lower():
        return head
    return _RETURN_PATH.sub(b"", header) + head[end:]


def header_values(head: bytes, name: str) -> list[str]:
    """The unfolded values of a header field, without parsing the message any further."""
    field = re.escape(name.encode())
    pattern = rb"^" + field + rb"[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)"
    found = re.findall(pattern, head[: header_end(head)], re.I | re.M)
    return [b" ".join(value.split()).decode("utf-8", "replace") for value in found]
