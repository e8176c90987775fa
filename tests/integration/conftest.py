"""Fixtures for tests with real peers; they skip in one line where there are none."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.living import Living
from tests.integration.site import ALICE, CAROL, PASSWORD, USERS, deploy, everything
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host, missing


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that is seen under the same path in a `Host`.

    Not tmp_path: that lies below a directory which only root may enter, and servers have users of
    their own.
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def ram() -> Iterator[Path]:
    """The same in RAM, for Dovecot's index caches."""
    with tempfile.TemporaryDirectory(prefix="peers-", dir="/dev/shm") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(params=["bookworm", "trixie"])
def host(shared: Path, ram: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Debian 12 and 13 in namespaces of their own: no process and no mount is left afterwards.

    The test and what it starts are in the host's network: tests that run at the same time, and
    servers of the machine, cannot take each other's ports.
    """
    if reason := missing(request.param):
        pytest.skip(reason)
    with Host(request.param, shared, ram, own_network=True) as running, running.network():
        yield running


@pytest.fixture
def dovecot(host: Host, shared: Path) -> Iterator[Dovecot]:
    """Dovecot with the shipped script and snippet."""
    (shared / "run").mkdir()
    host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    prepared = Dovecot(host, shared, USERS)
    deploy(prepared, *everything(prepared))
    with prepared as running:
        yield running


@pytest.fixture
def atrest(dovecot: Dovecot, shared: Path) -> Iterator[AtRest]:
    """The running services: alice is encrypted, and carol with a password from before."""
    service = AtRest(shared, dovecot)
    service.add(ALICE, PASSWORD)
    service.add(CAROL, "from before the change")
    with service as running:
        yield running


@pytest.fixture
def site(dovecot: Dovecot) -> Iterator[Living]:
    """A site without the service that converts in the background: what the test runs itself is
    not kept apart from that by the lock of accounts, and it says when."""
    running = Living(dovecot)
    running.atrest.only = ("lmtp", "unlock", "evict")
    with running:
        yield running
