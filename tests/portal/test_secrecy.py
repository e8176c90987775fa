"""What was typed into the portal is nowhere afterwards."""

import base64
import gc
import io
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from lmtp_atrest import telemetry
from lmtp_atrest.config import Config
from lmtp_atrest.portal.app import PAGES
from lmtp_atrest.portal.place import Place
from tests.portal.browsing import Browser, code_on
from tests.unlock.conftest import ALICE, BOB
from tests.unlock.running import Running

CANARY = "canary-4711-secret ünïcödé"
FIELDS = ("secret", "new", "repeat", "old", "code", "remove_secret", "group")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged at the most talkative level."""
    stream = io.StringIO()
    telemetry.configure("debug", stream, json=True)
    yield stream
    structlog.reset_defaults()


def forms_of(secret: str) -> list[str]:
    raw = secret.encode()
    return [secret, base64.b64encode(raw).decode(), raw.hex(), quote(secret), ascii(secret)]


def kept_by(place: Place) -> Iterator[Any]:
    """Every object that the portal holds on to, but for code."""
    seen: set[int] = set()
    left: list[Any] = [place]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | Config):
            continue
        seen.add(id(one))
        yield one
        left.extend(gc.get_referents(one))


async def test_no_form_leaves_a_trace(
    place: Place, visitor: Browser, unlock: Running, log: io.StringIO
) -> None:
    typed = {**dict.fromkeys(FIELDS, CANARY), "name": BOB, "label": "phone", "choice": "accept"}
    for _ in range(2):
        for page in PAGES:
            if page.act is not None and page.path not in ("/sign-out", "/freeze"):
                await visitor.post(page.path[1:], {"token": visitor.token, **typed})
                assert CANARY not in visitor.page.text, page.path
                await visitor.get("")
                unlock.clock.seconds += 20  # guesses are slowed down
        await visitor.sign_in(ALICE, "correct horse")
    await visitor.submit("code", secret="correct horse")
    code = code_on(visitor)
    await visitor.get("")
    secrets = [CANARY, "correct horse", code, code.replace("-", "")]
    written = log.getvalue()
    assert "not signed in" in written and '"signed in to the portal"' in written
    for secret in secrets:
        assert not [form for form in forms_of(secret) if form in written]
    held = [one for one in kept_by(place) if isinstance(one, str | bytes)]
    assert ALICE in held, "the search finds what is kept"
    texts = [one if isinstance(one, str) else one.decode("latin-1") for one in held]
    for secret in secrets:
        assert not [text for text in texts if secret in text]
