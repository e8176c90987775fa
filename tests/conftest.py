"""Fixtures that many modules need: a site, its stores and accounts with a cheap KDF."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sites import CheapSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CheapSite]:
    """A site of its own under tmp_path, with stores, keys and Argon2id at its floor."""
    made = CheapSite(tmp_path)
    yield made
    made.close()
