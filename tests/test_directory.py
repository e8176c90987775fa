import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.directory import DovecotDirectory, Found, KeystoreDirectory, escape, unescape
from lmtp_atrest.errors import TemporaryFailure
from tests.fakes import FakeUserdb


@asynccontextmanager
async def userdb(
    path: Path, answer: Callable[[str, str], bytes | None] | None = None
) -> AsyncIterator[FakeUserdb]:
    server = FakeUserdb(path, answer)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_dovecot_tells_found_and_not_found_apart(tmp_path: Path) -> None:
    async with userdb(tmp_path / "userdb") as server:
        server.users["alice"] = "uid=5000\tgid=5000\thome=/var/vmail/alice"
        directory = DovecotDirectory(server.path)
        assert await directory.lookup("alice") == Found(
            "alice", "/var/vmail/alice", "5000", "5000"
        )
        assert await directory.lookup("bob") is None
        assert server.connections == 1
        await directory.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"FAIL\t{id}\n",
        b"FAIL\t{id}\treason=LDAP is away\n",
        b"USER\t{id}\n",
        b"USER\t{id}\talice",  # cut in the middle of a line
        b"",
        b"VERSION\t2\t0\n",
        b"x" * 20_000 + b"\n",
    ],
)
async def test_all_other_trouble_is_temporary(tmp_path: Path, reply: bytes) -> None:
    def answer(number: str, _name: str) -> bytes | None:
        return reply.replace(b"{id}", number.encode()) or None

    async with userdb(tmp_path / "userdb", answer) as server:
        server.close_after_answer = not reply.startswith(b"FAIL")
        directory = DovecotDirectory(server.path)
        with pytest.raises(TemporaryFailure):
            await directory.lookup("alice")
        await directory.close()


async def test_a_missing_socket_is_temporary(tmp_path: Path) -> None:
    with pytest.raises(TemporaryFailure):
        await DovecotDirectory(tmp_path / "nothing").lookup("alice")


async def test_a_silent_dovecot_is_temporary_after_the_time_limit(tmp_path: Path) -> None:
    async with userdb(tmp_path / "userdb", lambda _id, _name: None) as server:
        directory = DovecotDirectory(server.path, answer_seconds=0.05)
        with pytest.raises(TemporaryFailure, match="did not answer"):
            await directory.lookup("alice")
        await directory.close()


async def test_a_restarted_dovecot_is_asked_again_without_failing_a_lookup(tmp_path: Path) -> None:
    path = tmp_path / "userdb"
    directory = DovecotDirectory(path)
    async with userdb(path) as server:
        server.users["alice"] = "home=/a"
        assert await directory.lookup("alice") is not None
    async with userdb(path) as server:
        server.users["alice"] = "home=/b"
        found = await directory.lookup("alice")
        assert found is not None
        assert found.home == "/b"
        await directory.close()


async def test_many_lookups_share_one_connection_and_get_their_own_answers(tmp_path: Path) -> None:
    async with userdb(tmp_path / "userdb") as server:
        for number in range(100):
            server.users[f"user{number}"] = f"home=/home/{number}"
        directory = DovecotDirectory(server.path)
        found = await asyncio.gather(*(directory.lookup(f"user{n}") for n in range(110)))
        assert [f.home if f else None for f in found] == [
            *(f"/home/{n}" for n in range(100)),
            *[None] * 10,
        ]
        assert server.connections == 1
        await directory.close()


async def test_a_name_cannot_add_fields_or_lines(tmp_path: Path) -> None:
    async with userdb(tmp_path / "userdb") as server:
        directory = DovecotDirectory(server.path)
        assert await directory.lookup("a\tservice=imap\nUSER\t9\troot") is None
        assert server.asked == ["a\tservice=imap\nUSER\t9\troot"]
        await directory.close()


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_escaped_text_has_no_separators_and_reads_back(text: str) -> None:
    escaped = escape(text)
    assert not set(escaped) & set("\t\r\n\0")
    assert unescape(escaped) == text


async def test_the_keystore_directory_knows_nobody_without_a_record() -> None:
    assert await KeystoreDirectory().lookup("alice") is None
