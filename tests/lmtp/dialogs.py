"""Reads and plays `tests/dialogs/lmtp/*.dialog`; how to write one stands in the README there."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.replies import Reply
from lmtp_atrest.lmtp.connection import Limits
from lmtp_atrest.lmtp.session import Session
from tests.fakes import SECRET_PATH, FakeDelivery

CLOSED = "<closed>"
WITHOUT_ENHANCED_CODE = re.compile(r"220 \S+ LMTP ready|250[- ](?!\d\.\d).*|354 .*")
ENHANCED = re.compile(r"([245])\d\d \1\.\d{1,3}\.\d{1,3} .+")


@dataclass
class Dialog:
    """What is set up, said and expected."""

    delivery: FakeDelivery = field(default_factory=FakeDelivery)
    limits: dict[str, float] = field(default_factory=dict)
    interactive: bool = False
    turns: list[tuple[bytes, list[str]]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    @property
    def spoken(self) -> bytes:
        return b"".join(sent for sent, _ in self.turns)

    @property
    def expected(self) -> list[str]:
        return [pattern for _, patterns in self.turns for pattern in patterns]


def read(path: Path) -> Dialog:
    dialog = Dialog(turns=[(b"", [])])
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        match kind:
            case "C:" | "C-":
                if dialog.turns[-1][1]:
                    dialog.turns.append((b"", []))
                sent, patterns = dialog.turns[-1]
                end = b"\r\n" if kind == "C:" else b""
                dialog.turns[-1] = (sent + unescape(rest) + end, patterns)
            case "S:":
                dialog.turns[-1][1].append(rest)
            case "M:":
                dialog.messages.append(unescape(rest))
            case "@":
                _set_up(dialog, rest.split())
            case _:
                assert not kind or kind.startswith("#"), line
    return dialog


def _set_up(dialog: Dialog, words: list[str]) -> None:
    match words:
        case ["interactive"]:
            dialog.interactive = True
        case ["limit", name, value]:
            dialog.limits[name] = float(value) if "." in value else int(value)
        case ["refuse", address, trouble]:
            dialog.delivery.refuse[address] = trouble
        case ["fail", step, trouble]:
            dialog.delivery.fail[step] = trouble
        case ["answer", address, name]:
            reply = getattr(replies, name)
            assert isinstance(reply, Reply)
            dialog.delivery.answer[address] = reply
        case _:
            raise AssertionError(words)


def unescape(text: str) -> bytes:
    """`\\r`, `\\n`, `\\0`, `\\xNN`, `\\\\`; and `\\*{N:c}` for N times the character c."""
    text = re.sub(r"\\\*\{(\d+):(.)\}", lambda m: m[2] * int(m[1]), text)
    plain = {"r": b"\r", "n": b"\n", "0": b"\0", "\\": b"\\"}
    out = b""
    for part in re.findall(r"\\x[0-9a-f]{2}|\\.|[^\\]+", text):
        if part.startswith("\\x"):
            out += bytes([int(part[2:], 16)])
        elif part.startswith("\\"):
            out += plain[part[1]]
        else:
            out += part.encode()
    return out


class Client:
    """A raw client; it only sends and reads lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, wire: bytes) -> None:
        self.writer.write(wire)
        await self.writer.drain()

    async def line(self) -> str:
        async with asyncio.timeout(5):
            raw = await self.reader.readline()
        return raw.decode().removesuffix("\r\n") if raw else CLOSED

    async def lines(self, count: int) -> list[str]:
        return [await self.line() for _ in range(count)]


@asynccontextmanager
async def connected(
    delivery: FakeDelivery, tls: ssl.SSLContext | None = None, **limits: float
) -> AsyncIterator[tuple[Client, Session]]:
    """A session on one end of a socket pair, a client on the other."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    session = Session(delivery, Limits(**limits), "mail.example", tls)  # type: ignore[arg-type]
    transport, _ = await loop.connect_accepted_socket(lambda: session, ours)
    client = Client(*await asyncio.open_connection(sock=theirs))
    try:
        yield client, session
    finally:
        client.writer.close()
        if session.conversation is not None:
            await asyncio.wait([session.conversation], timeout=5)
        transport.close()


def check(lines: list[str], dialog: Dialog) -> None:
    """Replies as expected, enhanced codes right, nothing of ours given away, messages stored."""
    assert len(lines) == len(dialog.expected), lines
    for line, pattern in zip(lines, dialog.expected, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
        assert SECRET_PATH not in line
        if line != CLOSED:
            assert WITHOUT_ENHANCED_CODE.fullmatch(line) or ENHANCED.fullmatch(line), line
    stored = [message.content for message in dialog.delivery.messages if message.stored]
    assert stored == dialog.messages
