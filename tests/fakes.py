"""Neighbours of ours, made small: each fake speaks the real protocol of what it stands for."""

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.replies import Refused, Reply
from lmtp_atrest.delivery.trace import Client
from lmtp_atrest.directory import escape, unescape
from lmtp_atrest.errors import Alarm, TemporaryFailure
from lmtp_atrest.names import Address


class FakeUserdb:
    """Dovecot's auth-userdb socket, answering from a table."""

    def __init__(
        self, path: Path, answer: Callable[[str, str], bytes | None] | None = None
    ) -> None:
        self.path = path
        self.users: dict[str, str] = {}
        self.asked: list[str] = []
        self.connections = 0
        self.close_after_answer = False
        self._answer = answer or self._from_table
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    def _from_table(self, number: str, name: str) -> bytes:
        fields = self.users.get(name)
        if fields is None:
            return f"NOTFOUND\t{number}\n".encode()
        return f"USER\t{number}\t{escape(name)}\t{fields}\n".encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        writer.write(b"VERSION\t1\t2\nSPID\t4711\n")
        assert await reader.readline() == b"VERSION\t1\t2\n"
        while line := await reader.readline():
            verb, number, name, service = line.decode().rstrip("\n").split("\t")
            assert (verb, service) == ("USER", "service=lmtp")
            self.asked.append(unescape(name))
            answer = self._answer(number, unescape(name))
            writer.write(answer or b"")
            if self.close_after_answer:
                break
        writer.close()


SECRET_PATH = "/var/vmail/secret-path"
TROUBLE: dict[str, BaseException] = {
    "alarm": Alarm(SECRET_PATH),
    "temporary": TemporaryFailure(SECRET_PATH),
    "disk-full": OSError(errno.ENOSPC, "No space left on device", SECRET_PATH),
    "bug": ZeroDivisionError(SECRET_PATH),
    "unknown": Refused(replies.NO_SUCH_RECIPIENT),
}


@dataclass
class FakeDelivery:
    """Stores messages in a list; recipients and steps fail as they are told to."""

    refuse: dict[str, str] = field(default_factory=dict)
    answer: dict[str, Reply] = field(default_factory=dict)
    fail: dict[str, str] = field(default_factory=dict)  # step -> trouble
    messages: list["FakeMessage"] = field(default_factory=list)
    commit_gate: asyncio.Event | None = None
    committing: asyncio.Event = field(default_factory=asyncio.Event)

    async def recipient(self, address: Address) -> Address:
        if address.name in self.refuse:
            raise TROUBLE[self.refuse[address.name]]
        return address

    def begin(
        self, sender: Address | None, recipients: Sequence[Address], client: Client
    ) -> "FakeMessage":
        self.trouble("begin")
        message = FakeMessage(self, sender, tuple(recipients), client)
        self.messages.append(message)
        return message

    def trouble(self, step: str) -> None:
        if step in self.fail:
            raise TROUBLE[self.fail[step]]


@dataclass
class FakeMessage:
    """One message of FakeDelivery."""

    delivery: FakeDelivery
    sender: Address | None
    recipients: tuple[Address, ...]
    client: Client
    content: bytes = b""
    stored: bool = False
    aborted: bool = False
    was_confirmed: bool = False
    was_unclear: bool = False

    async def write(self, chunk: bytes) -> None:
        self.delivery.trouble("write")
        self.content += chunk

    async def finish(self) -> list[Reply]:
        self.delivery.committing.set()
        if self.delivery.commit_gate is not None:
            await self.delivery.commit_gate.wait()
        self.delivery.trouble("finish")
        self.stored = True
        answers = [self.delivery.answer.get(r.name, replies.STORED) for r in self.recipients]
        return answers[1:] if "count" in self.delivery.fail else answers

    async def abort(self) -> None:
        self.aborted = True

    def confirmed(self) -> None:
        self.was_confirmed = True

    def unclear(self) -> None:
        self.was_unclear = True
