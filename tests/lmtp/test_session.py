import asyncio
import logging
import socket
import ssl
import struct
import tracemalloc
from io import StringIO
from pathlib import Path

import pytest
import trustme

from lmtp_atrest.config import Lmtp, Tls
from lmtp_atrest.lmtp import server
from lmtp_atrest.lmtp.connection import Limits
from tests.fakes import FakeDelivery
from tests.lmtp.dialogs import CLOSED, Client, connected

CANARY = "canary-7c1f"
ENVELOPE = b"LHLO c\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n"
MESSAGE = f"Subject: {CANARY}\r\n\r\n{CANARY}\r\n.\r\n".encode()
REPLIES_BEFORE_DATA = 1 + 6 + 3 + 1


def faults(log: StringIO) -> list[str]:
    return [line for line in log.getvalue().splitlines() if '"level": "info"' not in line]


async def until_data(client: Client) -> None:
    await client.send(ENVELOPE)
    lines = await client.lines(REPLIES_BEFORE_DATA)
    assert lines[-1].startswith("354"), lines


async def ended(session: object) -> None:
    task = session.conversation  # type: ignore[attr-defined]
    await asyncio.wait_for(asyncio.shield(task), 5)


async def test_a_client_that_goes_during_data_leaves_nothing() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(b"half a message\r\n")
        client.writer.transport.abort()
        await ended(session)
    (message,) = delivery.messages
    assert (message.stored, message.aborted, message.was_confirmed) == (False, True, False)


async def test_a_client_that_goes_during_the_commit_does_not_stop_it() -> None:
    delivery = FakeDelivery(commit_gate=asyncio.Event())
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(MESSAGE)
        await delivery.committing.wait()
        client.writer.transport.abort()
        await asyncio.sleep(0.01)
        assert delivery.commit_gate is not None
        delivery.commit_gate.set()
        await ended(session)
    (message,) = delivery.messages
    assert (message.stored, message.was_confirmed) == (True, False)
    assert message.was_unclear


async def test_an_end_without_a_sign_is_unclear_and_only_when_it_ends() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(MESSAGE)
        await client.lines(2)
        assert not delivery.messages[0].was_unclear
        client.writer.close()
        await ended(session)
    assert delivery.messages[0].was_unclear
    assert not delivery.messages[0].was_confirmed


async def test_messages_sent_ahead_are_confirmed_by_the_first_later_command() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, _):
        await client.send(ENVELOPE + MESSAGE + ENVELOPE + MESSAGE)
        await client.lines(2 * (REPLIES_BEFORE_DATA + 2) - 1)
        assert [message.was_confirmed for message in delivery.messages] == [False, False]
        await client.send(b"NOOP\r\n")
        await client.line()
        assert [message.was_confirmed for message in delivery.messages] == [True, True]
    assert [message.was_unclear for message in delivery.messages] == [False, False]


async def test_quit_after_the_replies_shows_that_they_were_read_whatever_follows() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(MESSAGE)
        await client.lines(2)
        await client.send(b"QUIT\r\n")
        client.writer.transport.abort()
        await ended(session)
    assert delivery.messages[0].was_confirmed


async def test_a_client_that_half_closes_still_gets_its_replies() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, _):
        await until_data(client)
        client.writer.write(MESSAGE)
        client.writer.write_eof()
        assert [line[:3] for line in await client.lines(3)] == ["250", "250", CLOSED[:3]]


@pytest.mark.parametrize("next_command", [b"NOOP\r\n", b"MAIL FROM:<s@x>\r\n", b"RSET\r\n"])
async def test_the_next_command_shows_that_the_replies_were_read(next_command: bytes) -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, _):
        await until_data(client)
        await client.send(MESSAGE)
        await client.lines(2)
        assert not delivery.messages[0].was_confirmed
        await client.send(next_command)
        await client.line()
        assert delivery.messages[0].was_confirmed


async def test_a_command_sent_before_the_replies_shows_nothing() -> None:
    delivery = FakeDelivery(commit_gate=asyncio.Event())
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(MESSAGE + b"NOOP\r\nQUIT\r\n")
        await delivery.committing.wait()
        client.writer.transport.abort()
        await asyncio.sleep(0.01)
        assert delivery.commit_gate is not None
        delivery.commit_gate.set()
        await ended(session)
    assert not delivery.messages[0].was_confirmed
    assert delivery.messages[0].was_unclear


async def test_an_orderly_close_after_quit_shows_that_the_replies_were_read() -> None:
    delivery = FakeDelivery()
    async with connected(delivery) as (client, session):
        await until_data(client)
        await client.send(MESSAGE + b"QUIT\r\n")
        lines = await client.lines(4)
        assert [line[:3] for line in lines] == ["250", "250", "221", CLOSED[:3]]
        client.writer.close()
        await ended(session)
    assert delivery.messages[0].was_confirmed
    assert not delivery.messages[0].was_unclear


async def test_a_client_that_never_reads_is_cut_off() -> None:
    async with connected(FakeDelivery(), idle_seconds=0.2) as (client, session):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(b"NOOP\r\n" * 200_000)
        await ended(session)


async def test_a_slow_sender_meets_the_limit_of_the_transaction() -> None:
    delivery = FakeDelivery()
    async with connected(delivery, transaction_seconds=0.3) as (client, _):
        await until_data(client)

        async def trickle() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        slow = asyncio.create_task(trickle())
        assert (await client.line()).startswith("421 4.4.2")
        slow.cancel()
    assert delivery.messages[0].aborted


@pytest.mark.parametrize("line", [b"x" * 78 + b"\r\n", b"x" * 65536])
async def test_memory_is_bounded_whatever_the_size_of_message_or_line(line: bytes) -> None:
    # The fake keeps nothing, as a refused message is read to its end.
    delivery = FakeDelivery(fail={"write": "bug"})
    async with connected(delivery, message_size=1 << 30) as (client, _):
        await until_data(client)
        block = line * (262_144 // len(line))
        tracemalloc.start()
        for _number in range(120):
            await client.send(block)
        await client.send(b"\r\n.\r\n")
        assert [line[:3] for line in await client.lines(2)] == ["451", "451"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20


async def test_nothing_of_a_session_is_logged_at_any_level(
    log: StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("mail", "mail.log", "mail.debug", "asyncio"):
        caplog.set_level(logging.DEBUG, name)  # more than `telemetry` ever lets through
    for fail in ({}, {"write": "bug"}, {"finish": "bug"}):
        async with connected(FakeDelivery(fail=fail)) as (client, _):
            await until_data(client)
            await client.send(MESSAGE + CANARY.encode() + b"\r\nVRFY " + CANARY.encode() + b"\r\n")
            await client.lines(4)
    assert CANARY not in log.getvalue()
    assert CANARY not in caplog.text


class Serving:
    """A server on one TCP and one unix socket."""

    def __init__(self, tmp_path: Path, delivery: FakeDelivery, **settings: object) -> None:
        self.path = tmp_path / "lmtp.sock"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(self.path))
        unix.listen()
        self.stopping = asyncio.Event()
        lmtp = Lmtp.model_validate(settings)
        self.task = asyncio.create_task(
            server.serve([self.tcp, unix], lmtp, delivery, self.stopping)
        )

    async def connect(self, *, unix: bool = False) -> Client:
        await asyncio.sleep(0.01)
        if unix:
            return Client(*await asyncio.open_unix_connection(str(self.path)))
        return Client(*await asyncio.open_connection(*self.tcp.getsockname()))

    async def stopped(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 10)


async def test_several_sockets_are_served_and_connections_bounded(tmp_path: Path) -> None:
    serving = Serving(tmp_path, FakeDelivery(), max_connections=2)
    clients = [await serving.connect(), await serving.connect(unix=True)]
    for client in clients:
        assert (await client.line()).startswith("220 ")
    third = await serving.connect()
    assert await third.lines(2) == ["421 4.3.2 too many connections, try again", CLOSED]
    clients[0].writer.close()
    await asyncio.sleep(0.05)
    fourth = await serving.connect()
    assert (await fourth.line()).startswith("220 ")
    await serving.stopped()
    for client in (clients[1], third, fourth):
        client.writer.close()


async def test_a_stop_answers_started_dots_and_tells_the_others_to_come_back(
    tmp_path: Path, log: StringIO
) -> None:
    delivery = FakeDelivery(commit_gate=asyncio.Event())
    serving = Serving(tmp_path, delivery)
    busy, receiving, idle = [await serving.connect() for _ in range(3)]
    await until_data(busy)
    await busy.send(MESSAGE + b"NOOP\r\n")
    await until_data(receiving)
    await receiving.send(b"Subject: half\r\n")
    assert (await idle.line()).startswith("220 ")
    await delivery.committing.wait()
    serving.stopping.set()
    assert await idle.lines(2) == ["421 4.3.2 service stops, try again", CLOSED]
    assert delivery.commit_gate is not None
    delivery.commit_gate.set()
    assert [line[:9] for line in await busy.lines(4)] == [*["250 2.0.0"] * 2, "421 4.3.2", CLOSED]
    await receiving.send(b"\r\nrest\r\n.\r\n")
    assert [line[:9] for line in await receiving.lines(4)] == [
        *["250 2.0.0"] * 2,
        "421 4.3.2",
        CLOSED,
    ]
    await serving.stopped()
    assert faults(log) == []
    for client in (busy, receiving, idle):
        client.writer.close()


@pytest.mark.parametrize("ahead", [b"", b"QUIT\r\n", b"NOOP\r\nQUIT\r\n", b"BDAT 3\r\n"])
@pytest.mark.parametrize("reset_first", [True, False])
async def test_a_client_that_resets_is_no_fault_of_ours_and_its_end_is_unclear(
    tmp_path: Path, log: StringIO, ahead: bytes, reset_first: bool
) -> None:
    delivery = FakeDelivery(commit_gate=asyncio.Event())
    assert delivery.commit_gate is not None
    serving = Serving(tmp_path, delivery)
    client = await serving.connect()
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until_data(client)
    await client.send(MESSAGE + ahead)
    await delivery.committing.wait()
    steps = [client.writer.transport.abort, delivery.commit_gate.set]
    for step in steps if reset_first else reversed(steps):
        step()
        await asyncio.sleep(0.01 if reset_first else 0)
    serving.stopping.set()
    await serving.stopped()
    (message,) = delivery.messages
    assert (message.was_confirmed, message.was_unclear) == (False, True)
    assert faults(log) == []
    assert log.getvalue().count("did not show that it read") == 1


async def test_a_slow_sender_does_not_hold_up_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RECEIVE_SECONDS", 0.1)
    delivery = FakeDelivery()
    serving = Serving(tmp_path, delivery)
    client = await serving.connect()
    await until_data(client)
    serving.stopping.set()
    assert await client.lines(2) == ["421 4.3.2 service stops, try again", CLOSED]
    await serving.stopped()
    assert delivery.messages[0].aborted
    client.writer.close()


async def test_starttls_is_required_where_it_is_offered(tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("mail.example")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made.cert_chain_pems[0].write_to_path(certificate)
    made.private_key_pem.write_to_path(key)
    tls = server._tls_context(Lmtp(tls=Tls(certificate=certificate, key=key)))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    delivery = FakeDelivery()
    async with connected(delivery, tls=tls) as (client, _):
        await client.send(b"LHLO c\r\nMAIL FROM:<a@x>\r\n")
        lines = await client.lines(1 + 7 + 1)
        assert "250 STARTTLS" in lines
        assert lines[-1].startswith("530 5.7.0")
        await client.send(b"STARTTLS\r\n")
        assert (await client.line()).startswith("220 2.0.0")
        await client.writer.start_tls(trusting, server_hostname="mail.example")
        await client.send(b"MAIL FROM:<a@x>\r\n")
        assert (await client.line()).startswith("503 5.5.1")  # everything before is forgotten
        await client.send(ENVELOPE + MESSAGE)
        lines = await client.lines(6 + 3 + 1 + 2)
        assert "250 SMTPUTF8" in lines
        assert lines[-1].startswith("250 2.0.0")
    assert delivery.messages[0].client.protocol == "LMTPS"


async def test_commands_sent_ahead_of_the_handshake_are_never_executed() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with connected(FakeDelivery(), tls=tls) as (client, _):
        await client.send(b"STARTTLS\r\nNOOP\r\n")
        lines = await client.lines(3)
        assert lines[1].startswith("501 5.5.1")
        assert lines[2] == CLOSED


def test_the_limits_are_those_of_the_configuration() -> None:
    assert Limits() == Limits(300, 3600, Lmtp().max_message_size, Lmtp().max_recipients, 20)
