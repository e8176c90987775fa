"""Runs the transcripts of docs/unlock-protocol.md and tests/dialogs/unlock against the service.

A line of a transcript is one of
    connect ROLE        a new connection to that socket
    C: LINE             sent as it stands; $names are filled in
    C*: N TEXT          TEXT repeated N times, without a line end
    S: JSON             the next line received: "…" is any string, "abc…" any that begins so,
                        "<number>" any number; a "$name" seen first is kept, later compared
    closed              the server has hung up
    wait SECONDS        time passes
    # ...               a comment
At the start $header is the head of a message to alice@example.org.
"""

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.unlock.requests import Role
from tests.unlock.conftest import ALICE
from tests.unlock.running import Running

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "unlock-protocol.md"
BLOCKS = re.findall(r"^```dialog\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
FILES = sorted((ROOT / "tests" / "dialogs" / "unlock").glob("*.dialog"))
DIALOGS = [
    *(pytest.param(text, id=f"document {number}") for number, text in enumerate(BLOCKS, 1)),
    *(pytest.param(file.read_text(), id=file.stem) for file in FILES),
]


class Transcript:
    def __init__(self, unlock: Running) -> None:
        self.unlock = unlock
        self.values: dict[str, str] = {"header": message_header(unlock)}
        self.reader: asyncio.StreamReader | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def run(self, text: str) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            word, _, rest = line.partition(" ")
            try:
                await self.step(word, rest)
            except AssertionError as error:
                pytest.fail(f"line {number}: {line}\n{error}")

    async def step(self, word: str, rest: str) -> None:
        match word:
            case "" | "#":
                return
            case "connect":
                path = self.unlock.path(Role(rest))
                self.reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
                self.writers.append(writer)
            case "C:":
                self.writers[-1].write(self.filled(rest).encode() + b"\n")
            case "C*:":
                count, _, text = rest.partition(" ")
                self.writers[-1].write(text.encode() * int(count))
            case "S:":
                received = json.loads(await self.received())
                assert self.matches(json.loads(rest), received), f"received {received}"
            case "closed":
                assert await self.received() == b""
            case "wait":
                self.unlock.clock.seconds += float(rest)
            case _:
                raise AssertionError("not a line of a transcript")

    async def received(self) -> bytes:
        assert self.reader is not None
        return await asyncio.wait_for(self.reader.readline(), 10)

    def filled(self, text: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: self.values[match[1]], text)

    def matches(self, expected: Any, received: Any) -> bool:
        if isinstance(expected, dict):
            return (
                isinstance(received, dict)
                and expected.keys() == received.keys()
                and all(self.matches(expected[key], received[key]) for key in expected)
            )
        if isinstance(expected, list):
            return (
                isinstance(received, list)
                and len(expected) == len(received)
                and all(map(self.matches, expected, received))
            )
        if expected == "<number>":
            return type(received) in (int, float)
        if isinstance(expected, str) and isinstance(received, str):
            return self.text_matches(expected, received)
        return type(expected) is type(received) and bool(expected == received)

    def text_matches(self, expected: str, received: str) -> bool:
        name = re.fullmatch(r"\$(\w+)", expected)
        if name and name[1] not in self.values:
            self.values[name[1]] = received
        expected = self.filled(expected)
        if expected.endswith("…"):
            return received.startswith(expected[:-1])
        return expected == received


def message_header(unlock: Running) -> str:
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    sealed = dcrypt.seal(PublicKey.from_der(record.public_key), b"Subject: hello\n")
    return base64.b64encode(dcrypt.parse_header(sealed).raw).decode()


@pytest.mark.parametrize("text", DIALOGS)
async def test_dialog(unlock: Running, text: str) -> None:
    transcript = Transcript(unlock)
    try:
        await transcript.run(text)
    finally:
        for writer in transcript.writers:
            writer.close()
            await writer.wait_closed()


def test_the_document_has_transcripts_of_every_socket() -> None:
    for role in (Role.DOVECOT, Role.READER, Role.ADMIN):
        assert any(f"connect {role}" in block for block in BLOCKS)
    assert FILES


async def test_a_wrong_transcript_fails(unlock: Running) -> None:
    transcript = Transcript(unlock)
    with pytest.raises(pytest.fail.Exception, match="line 2"):
        await transcript.run('connect reader\nS: {"service":"x","version":1,"role":"reader"}')
    transcript.writers[0].close()
