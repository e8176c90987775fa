from collections.abc import Iterator
from io import StringIO

import pytest
import structlog

from lmtp_atrest import telemetry


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """Everything that is logged, at the most talkative level."""
    stream = StringIO()
    telemetry.configure("debug", stream, json=True)
    yield stream
    structlog.reset_defaults()
