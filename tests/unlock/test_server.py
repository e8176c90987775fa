import asyncio
import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.errors import ConfigError, TemporaryFailure, WrongSecret
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock import server as server_module
from lmtp_atrest.unlock.client import Client, SocketUnwrap, SyncClient
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import Open, Request, Role, Status
from lmtp_atrest.unlock.server import RoleServer, uids_of
from lmtp_atrest.unlock.serving import serve
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, PASSWORD
from tests.unlock.running import Running, config_for, open_descriptors

ROOT = Path(__file__).parents[2]
ME = frozenset({os.geteuid()})
STATUS = b'{"op":"status"}\n'


async def echo(request: Request, peer: Peer) -> Reply:
    return Reply("echo", {"op": type(request).__name__, "uid": peer.uid})


@asynccontextmanager
async def listening(path: Path, **changes: object) -> AsyncIterator[RoleServer]:
    settings: dict[str, object] = {"peers": ME, "answer": echo, **changes}
    server = RoleServer(Role.ADMIN, path, **settings)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        await server.stop()


class Dialling:
    """Connections that are closed when the test ends."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        self.writers.append(writer)
        return reader, writer


@pytest_asyncio.fixture
async def dial() -> AsyncIterator[Dialling]:
    dialling = Dialling()
    yield dialling
    for writer in dialling.writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def test_a_peer_of_another_uid_is_closed_before_anything_is_read(
    dial: Dialling, sockets: Path
) -> None:
    path = sockets / "a.sock"
    async with listening(path, peers=frozenset({4_000_000_000})):
        with capture_logs() as logs:
            reader, _ = await dial(path)
            assert await reader.read() == b""
    assert [entry["event"] for entry in logs] == ["peer refused"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_nobody_is_refused_where_root_is_served(dial: Dialling, sockets: Path) -> None:
    path = sockets / "a.sock"
    ways = [sockets, *sockets.parents]
    for directory in ways[: ways.index(Path(tempfile.gettempdir()))]:
        os.chmod(directory, 0o755)  # noqa: PTH101 - no Path in async code
    program = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(1);"
        "s.connect(sys.argv[1]); print(s.recv(100))"
    )
    async with listening(path, peers=frozenset({0, 12345})):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(path), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output == b"b''\n"
        assert (await (await dial(path))[0].readline()).startswith(b'{"service"')


@pytest.mark.parametrize(("peers", "mode"), [(ME | {0}, 0o600), (ME | {12345}, 0o666)])
async def test_the_mode_opens_a_socket_only_where_others_are_peers(
    sockets: Path, peers: frozenset[int], mode: int
) -> None:
    async with listening(sockets / "a.sock", peers=peers):
        assert stat.S_IMODE((sockets / "a.sock").stat().st_mode) == mode
    assert not (sockets / "a.sock").exists()


async def test_requests_sent_ahead_are_answered_in_order(dial: Dialling, sockets: Path) -> None:
    async with listening(sockets / "a.sock"):
        reader, writer = await dial(sockets / "a.sock")
        await reader.readline()
        stream = STATUS + b'{"op":"account-list"}\nx\n' + STATUS
        for byte in stream:
            writer.write(bytes([byte]))
            await writer.drain()
        replies = [json.loads(await reader.readline()) for _ in range(4)]
        assert [reply.get("op") for reply in replies] == ["Status", "AccountList", None, "Status"]
        assert replies[0]["uid"] == os.geteuid()


async def test_an_idle_connection_is_closed(dial: Dialling, sockets: Path) -> None:
    async with listening(sockets / "a.sock", idle_seconds=0.05):
        reader, writer = await dial(sockets / "a.sock")
        await reader.readline()
        writer.write(STATUS[:-1])
        assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_one_connection_too_many_is_busy_and_a_free_place_is_taken(
    dial: Dialling, sockets: Path
) -> None:
    path = sockets / "a.sock"
    async with listening(path, max_connections=2):
        held = [await dial(path) for _ in range(2)]
        for reader, _ in held:
            await reader.readline()
        late, _ = await dial(path)
        assert await late.read() == b'{"result":"busy"}\n'
        held[0][1].close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            reader, _ = await dial(path)
            if b"service" in await reader.readline():
                break
        else:
            pytest.fail("no place became free")


async def test_peers_that_go_away_leave_nothing_behind(dial: Dialling, sockets: Path) -> None:
    async with listening(sockets / "a.sock") as server:
        before = open_descriptors()
        for sent in (b"", b"{", STATUS, STATUS * 500):
            _, writer = await dial(sockets / "a.sock")
            writer.write(sent)
            writer.transport.abort()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not server._connections:
                break
        assert not server._connections
        assert open_descriptors() <= before


async def test_stopping_answers_what_is_under_way_and_accepts_no_more(
    dial: Dialling, sockets: Path
) -> None:
    path = sockets / "a.sock"
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request, _peer: Peer) -> Reply:
        begun.set()
        await release.wait()
        return Reply("done")

    async with listening(path, answer=slow) as server:
        idle, _ = await dial(path)
        reader, writer = await dial(path)
        await idle.readline()
        await reader.readline()
        writer.write(STATUS + STATUS)
        await begun.wait()
        stopping = asyncio.create_task(server.stop())
        assert await idle.read() == b""
        with pytest.raises(OSError, match="No such file"):
            await dial(path)
        release.set()
        assert await reader.read() == b'{"result":"done"}\n'
        await stopping


async def test_a_socket_left_behind_is_replaced_and_a_served_one_is_not(
    dial: Dialling, sockets: Path
) -> None:
    path = sockets / "a.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with listening(path):
        with pytest.raises(TemporaryFailure, match="another process"):
            async with listening(path):
                pass
        assert await (await dial(path))[0].readline()


async def test_nothing_but_a_socket_is_replaced(sockets: Path) -> None:
    (sockets / "a.sock").write_text("precious")
    with pytest.raises(TemporaryFailure, match="not a socket"):
        async with listening(sockets / "a.sock"):
            pass
    assert (sockets / "a.sock").read_text() == "precious"


async def test_a_path_too_long_for_a_socket_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        async with listening(tmp_path / ("x" * 108)):
            pass


def test_users_become_uids_and_unknown_ones_are_logged() -> None:
    with capture_logs() as logs:
        assert uids_of(["root", "12", "no-such-user-here"]) == {0, 12}
    assert [entry["user"] for entry in logs] == ["no-such-user-here"]


async def test_a_reply_that_does_not_fit_its_socket_becomes_a_failure(
    dial: Dialling, sockets: Path
) -> None:
    async def unflat(_request: Request, _peer: Peer) -> Reply:
        return Reply("found", {"count": 1})

    server = RoleServer(Role.DOVECOT, sockets / "d.sock", ME, unflat)
    server.start()
    reader, writer = await dial(sockets / "d.sock")
    await reader.readline()
    writer.write(b'{"op":"lookup","name":""}\n')
    assert await reader.readline() == b'{"result":"temporary-failure"}\n'
    await server.stop()


# ---- the whole service


async def test_serve_runs_until_told_to_stop_and_wipes(people: CheapSite, sockets: Path) -> None:
    config, stopping, ready = config_for(sockets), asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(config, people.accounts, stopping, ready=ready))
    await asyncio.wait_for(ready.wait(), 5)
    path = sockets / "reader.sock"
    async with await Client.connect(path, Role.READER) as client:
        assert (await client.ask(Open(ALICE, PASSWORD, "x"))).result == "opened"
        with pytest.raises(WrongSecret):
            await client.ask(Open(ALICE, Secret(b"wrong"), "x"))
        stopping.set()
        await asyncio.wait_for(serving, 5)
        with pytest.raises(TemporaryFailure, match="closed the connection"):
            await client.ask(Open(ALICE, PASSWORD, "x"))
    with pytest.raises(TemporaryFailure, match="is it running"):
        await Client.connect(path, Role.READER)
    assert os.listdir(sockets) == []  # noqa: PTH208 - no Path in async code


async def test_a_second_service_on_the_same_sockets_does_not_start(
    unlock: Running, people: CheapSite
) -> None:
    with pytest.raises(TemporaryFailure, match="another process"):
        await serve(unlock.config, people.accounts, asyncio.Event())
    assert (await unlock.line(Role.ADMIN, STATUS[:-1]))["result"] == "status"


async def test_a_storm_of_wrong_secrets_is_answered_and_the_loop_goes_on(unlock: Running) -> None:
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    async def guess(number: int) -> str:
        async with await unlock.connect(Role.READER) as client:
            try:
                await client.ask(Open(ALICE, Secret(b"guess %d" % number), f"s{number}"))
            except (WrongSecret, TemporaryFailure) as error:
                return type(error).__name__
        return "opened"

    beating = asyncio.create_task(heart())
    answers = await asyncio.wait_for(asyncio.gather(*map(guess, range(200))), 60)
    beating.cancel()
    assert set(answers) == {"WrongSecret", "Busy"}
    assert unlock.service.pool.runs <= 50
    # Argon2id with the GIL held would let the loop turn once a run at the most.
    assert beats > unlock.service.pool.runs


# ---- clients


async def test_the_command_lines_client_reads_mail_through_the_socket(unlock: Running) -> None:
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    sealed = dcrypt.seal(PublicKey.from_der(record.public_key), b"Subject: hello\n")

    def read() -> bytes:
        with SyncClient(unlock.path(Role.ADMIN), Role.ADMIN) as client:
            assert client.ask(Status())["open_vaults"] == 0
            token = client.ask(Open(ALICE, PASSWORD, "cli"))["token"]
            return dcrypt.open_bytes(sealed, SocketUnwrap(client, token))

    assert await asyncio.to_thread(read) == b"Subject: hello\n"


async def test_the_command_lines_client_says_who_is_not_there(
    unlock: Running, sockets: Path
) -> None:
    def dial_wrongly() -> None:
        with pytest.raises(TemporaryFailure, match="is it running"):
            SyncClient(sockets / "none.sock", Role.ADMIN)
        with pytest.raises(Exception, match="not an unlock socket"):
            SyncClient(unlock.path(Role.READER), Role.ADMIN)

    await asyncio.to_thread(dial_wrongly)


async def test_the_forty_line_reader_of_the_documents_reads_a_folder(
    unlock: Running, tmp_path: Path
) -> None:
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    public, folder = PublicKey.from_der(record.public_key), tmp_path / "Maildir"
    for name in ("cur", "new", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "cur" / "1").write_bytes(dcrypt.seal(public, b"Subject: first\n\nx\n"))
    (folder / "cur" / "2").write_bytes(b"Subject: plain\n\nx\n")
    (folder / "new" / "3").write_bytes(dcrypt.seal(public, b"Subject: last\n\n" + b"x" * 10**6))

    async def read(password: bytes) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "docs" / "examples" / "read_folder.py"),
            *(str(unlock.path(Role.READER)), ALICE, str(folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(password + b"\n")
        return process.returncode, out.decode(), err.decode()

    assert await read(b"correct horse") == (0, "first\nplain\nlast\n", "")
    assert await read(b"wrong") == (1, "", "not opened: wrong-secret\n")
    assert len(unlock.service.vaults) == 0


def test_the_shell_knows_the_length_of_a_socket_path() -> None:
    assert server_module.PATH_BYTES == 107
