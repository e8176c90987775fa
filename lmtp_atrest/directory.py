"""Who exists, for addresses that no account of ours has: Dovecot's word, or nobody.

"Not found" is said only where the directory said so. Every other trouble is a TemporaryFailure:
a directory that is away must not bounce mail. Nothing here decides how mail is delivered.
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from lmtp_atrest.config import Config
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.telemetry import logger

log = logger("directory")

ANSWER_SECONDS = 5.0
LINE_LIMIT = 8192  # a reply of Dovecot's auth holds no more
_TO_WIRE = {"\x01": "\x011", "\t": "\x01t", "\r": "\x01r", "\n": "\x01n", "\0": "\x010"}
_FROM_WIRE = {"1": "\x01", "t": "\t", "r": "\r", "n": "\n", "0": "\0"}


@dataclass(frozen=True, slots=True)
class Found:
    """What the directory knows of an address: the user's own name, home, ids, and all it said."""

    name: str
    home: str
    uid: str = ""
    gid: str = ""
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)


class Directory(Protocol):
    """Tells whether an address exists."""

    async def lookup(self, name: str) -> Found | None:
        """The user of this canonical name, None for a certain "not found"; TemporaryFailure."""
        ...


class KeystoreDirectory:
    """A site without another directory: whoever has no record does not exist."""

    async def lookup(self, name: str) -> Found | None:
        """None always: an account of ours is found before the directory is asked."""
        del name
        return None


class DovecotDirectory:
    """Asks Dovecot's `auth-userdb` socket, over one kept connection.

    The protocol is a line of TAB-separated fields each way (Dovecot's auth-master protocol,
    version 1.x): `USER <id> <name> service=lmtp`, answered by `USER <id> <name> <fields>`,
    `NOTFOUND <id>` or `FAIL <id>`. Look-ups are pipelined; answers find theirs by id.
    """

    def __init__(self, socket: Path, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._socket = socket
        self._answer_seconds = answer_seconds
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def lookup(self, name: str) -> Found | None:
        """Ask Dovecot, once more on a fresh connection where a kept one turns out dead."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await self._ask(name)
        except TimeoutError as error:
            message = f"{self._socket} did not answer within {self._answer_seconds:g} s"
            raise TemporaryFailure(message) from error
        except OSError as error:
            message = f"{self._socket}: {error}"
            raise TemporaryFailure(message) from error

    async def _ask(self, name: str) -> Found | None:
        kept = self._connection
        if kept is not None and kept.alive:
            try:
                return await kept.ask(name)
            except ConnectionError:
                log.info("connection closed by Dovecot, connecting again")
                await kept.close()
        fresh = await self._connect()
        return await fresh.ask(name)

    async def _connect(self) -> "_Connection":
        async with self._connecting:
            if self._connection is None or not self._connection.alive:
                self._connection = await _Connection.open(self._socket)
            return self._connection

    async def close(self) -> None:
        """Close the kept connection; look-ups under way fail as temporary trouble."""
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def directory_of(config: Config) -> Directory:
    """Who exists, by the configuration's word."""
    if config.directory.source == "dovecot":
        return DovecotDirectory(config.directory.socket)
    return KeystoreDirectory()


class _Connection:
    """One connection: waiting look-ups by id, and the task that reads their answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[str, asyncio.Future[list[str]]] = {}
        self._last_id = 0
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, socket: Path) -> "_Connection":
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_LIMIT)
        writer.write(b"VERSION\t1\t2\n")
        return cls(reader, writer)

    @property
    def alive(self) -> bool:
        return not self._reading.done()

    async def ask(self, name: str) -> Found | None:
        self._last_id += 1
        number = str(self._last_id)
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(f"USER\t{number}\t{escape(name)}\tservice=lmtp\n".encode())
            await self._writer.drain()
            return _understand(await answer)
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                if not line.endswith(b"\n"):
                    break
                self._take(line.decode(errors="surrogateescape").removesuffix("\n"))
        except (OSError, ValueError) as error:  # ValueError: a line beyond LINE_LIMIT
            log.warning("connection to Dovecot broke", cause=repr(error))
        finally:
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("closed by Dovecot"))

    def _take(self, line: str) -> None:
        fields = line.split("\t")
        if fields[0] == "VERSION" and fields[1:2] != ["1"]:
            message = f"Dovecot speaks version {fields[1:2]}, not 1"
            raise ValueError(message)
        if fields[0] in ("USER", "NOTFOUND", "FAIL") and len(fields) > 1:
            answer = self._waiting.get(fields[1])
            if answer is not None and not answer.done():
                answer.set_result(fields)


def _understand(fields: list[str]) -> Found | None:
    verb, rest = fields[0], [unescape(field) for field in fields[2:]]
    if verb == "NOTFOUND":
        return None
    if verb == "FAIL" or not rest:
        message = f"Dovecot's user look-up failed: {' '.join(rest) or 'no reason given'}"
        raise TemporaryFailure(message)
    values = dict(field.partition("=")[::2] for field in rest[1:])
    return Found(
        rest[0],
        values.get("home", ""),
        uid=values.get("uid", ""),
        gid=values.get("gid", ""),
        fields=values,
    )


def escape(text: str) -> str:
    """As a field of Dovecot's protocol: no TAB, no line end, no NUL (lib/strescape)."""
    return "".join(_TO_WIRE.get(character, character) for character in text)


def unescape(text: str) -> str:
    """What `escape` wrote; a 0x01 before anything else stands for that character."""
    return re.sub("\x01(.)", lambda match: _FROM_WIRE.get(match[1], match[1]), text)
