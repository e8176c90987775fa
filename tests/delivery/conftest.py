from collections.abc import Iterator
from io import StringIO

import pytest
import structlog

from lmtp_atrest import telemetry
from tests.delivery.sites import DeliverySite
from tests.sites import CheapSite


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """Everything that is logged, at the most talkative level."""
    stream = StringIO()
    telemetry.configure("debug", stream, json=True)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def mail(site: CheapSite) -> Iterator[DeliverySite]:
    """A site that delivers."""
    made = DeliverySite(site)
    yield made
    made.delivery.close()
