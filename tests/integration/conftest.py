"""Fixtures for tests with real peers; they skip in one line where there are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.root import Host, missing


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that is seen under the same path in a `Host`, by all its users."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
def host(shared: Path) -> Iterator[Host]:
    """Debian 12 in namespaces of its own: no process and no mount of it is left afterwards."""
    if reason := missing("bookworm"):
        pytest.skip(reason)
    with Host("bookworm", shared) as running:
        yield running
