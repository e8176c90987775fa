"""While something takes long: a line now and then, and a connection that stays."""

import time
from collections.abc import Callable

from lmtp_atrest.cli.terminal import note
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import Status

LINE_SECONDS = 10.0

# Of 300 after which the unlock service hangs up on a silent client.
ALIVE_SECONDS = 60.0


class KeptOpen:
    """Keeps a connection that this process, as another user, could not make again."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Ask something now and then."""
        if time.monotonic() - self._last >= ALIVE_SECONDS:
            self._client.ask(Status())
            self._last = time.monotonic()


class Ticker:
    """Says how far it is, on standard error, no more often than every ten seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()

    def __call__(self, text: str) -> None:
        """How far it is now."""
        if self._now() - self._last >= LINE_SECONDS:
            self._last = self._now()
            note(text)
