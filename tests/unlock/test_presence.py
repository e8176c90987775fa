"""Whether the site still knows a user: at most a few wait, and nobody is made up."""

import asyncio

import pytest

from lmtp_atrest.directory import Found
from lmtp_atrest.errors import Busy, TemporaryFailure
from lmtp_atrest.unlock.presence import STALE_SECONDS, WAITING_LIMIT, Presence


class SlowDirectory:
    """Answers once it is let; knows alice."""

    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.down = False

    async def lookup(self, name: str) -> Found | None:
        await self.answering.wait()
        if self.down:
            raise TemporaryFailure("down")
        return Found(name, "/var/vmail/alice") if name == "alice" else None


async def test_beyond_the_limit_a_recent_answer_has_to_do() -> None:
    directory, clock = SlowDirectory(), [1000.0]
    presence = Presence(directory, lambda: clock[0])
    directory.answering.set()
    assert await presence.known("alice")
    assert not await presence.known("nobody")
    directory.answering.clear()
    waiting = [asyncio.create_task(presence.known("nobody")) for _ in range(WAITING_LIMIT)]
    await asyncio.sleep(0)
    assert await presence.known("alice")
    with pytest.raises(Busy):
        await presence.known("nobody")
    clock[0] += STALE_SECONDS
    with pytest.raises(Busy):
        await presence.known("alice")
    directory.answering.set()
    assert await asyncio.gather(*waiting) == [False] * WAITING_LIMIT
    directory.down = True
    with pytest.raises(TemporaryFailure):
        await presence.known("alice")
