"""Neighbours of ours, made small: each fake speaks the real protocol of what it stands for."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from lmtp_atrest.directory import escape, unescape


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
