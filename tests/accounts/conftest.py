"""A site for each test here, copied from one that was made once, with Argon2id made cheap."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounts.faults import MEMORY, CopiedSite, cheapen
from tests.sites import CheapSite


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> CheapSite:
    """An empty site, whose stores are closed."""
    made = CheapSite(tmp_path_factory.mktemp("template"))
    made.close()
    return made


@pytest.fixture
def site(template: CheapSite) -> Iterator[CopiedSite]:
    with pytest.MonkeyPatch().context() as patch, tempfile.TemporaryDirectory(dir=MEMORY) as root:
        cheapen(patch)  # by a patch of its own: tests undo theirs
        made = CopiedSite.of(Path(root), template)
        yield made
        made.close()
