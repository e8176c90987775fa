"""A site made once: its stores are copied for each test, because enabling costs Argon2id twice."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lmtp_atrest.secret import Secret
from tests.sites import CheapSite
from tests.unlock.running import Running, running

ALICE, BOB = "alice@example.org", "bob@example.org"
PASSWORD = Secret(b"correct horse")


@pytest.fixture(scope="session")
def made_site(tmp_path_factory: pytest.TempPathFactory) -> CheapSite:
    """alice is encrypted with "correct horse", bob is plain."""
    site = CheapSite(tmp_path_factory.mktemp("made"))
    site.add(ALICE, PASSWORD)
    site.add(BOB)
    site.close()
    return site


@pytest.fixture
def people(made_site: CheapSite, tmp_path: Path) -> Iterator[CheapSite]:
    """A copy of the made site for one test."""
    for database in made_site.root.glob("*.db"):
        shutil.copy(database, tmp_path)
    site = CheapSite.__new__(CheapSite)
    site.root, site.key, site.public = tmp_path, made_site.key, made_site.public
    site.open()
    yield site
    site.close()


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: a unix socket's name has 107 bytes at most."""
    return tmp_path_factory.mktemp("u")


@pytest_asyncio.fixture
async def unlock(people: CheapSite, sockets: Path) -> AsyncIterator[Running]:
    async with running(people, sockets) as service:
        yield service
