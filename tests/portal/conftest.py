"""A portal before a real unlock service, and a stand-in for the site's IMAP server.

alice is encrypted with "correct horse", bob is plain; the site knows both of them.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lmtp_atrest.cli.demoimap import DemoImap
from lmtp_atrest.config import Portal
from lmtp_atrest.portal.place import Place
from lmtp_atrest.secret import Secret
from tests.portal.browsing import URL, Browser, browser
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, BOB, PASSWORD, made_site, people, sockets
from tests.unlock.running import Running, running

__all__ = ["made_site", "people", "sockets"]

BOBS_PASSWORD = Secret(b"bob's own password")


@pytest.fixture(scope="session")
def imap() -> Iterator[DemoImap]:
    with DemoImap({BOB: BOBS_PASSWORD, ALICE: PASSWORD}) as server:
        yield server


@pytest_asyncio.fixture
async def unlock(people: CheapSite, sockets: Path) -> AsyncIterator[Running]:
    async with running(people, sockets) as service:
        yield service


@pytest.fixture
def place(unlock: Running, imap: DemoImap) -> Place:
    portal = Portal(listen="127.0.0.1:0", url=URL, authenticate=imap.address, name="Example Mail")
    config = unlock.config.model_copy(update={"portal": portal})
    return Place(config, now=unlock.clock, refusal_seconds=0.0)


@pytest_asyncio.fixture
async def visitor(place: Place) -> AsyncIterator[Browser]:
    async with browser(place) as one:
        yield one
