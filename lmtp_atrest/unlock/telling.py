"""The convert service tells the unlock service how far it is, for the portal to show.

Best effort: nothing that is told is needed for anything but to be looked at.
"""

from pathlib import Path

from lmtp_atrest.conversion.background import Progress
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import ConvertProgress, Role

log = logger("conversion")


class ProgressTeller:
    """Keeps one connection to the convert socket; call it from one thread."""

    def __init__(self, sockets: Path) -> None:
        self._path = sockets / f"{Role.CONVERT}.sock"
        self._client: SyncClient | None = None

    def __call__(self, progress: Progress) -> bool:
        """Whether the unlock service has heard it; once not, it may have forgotten all before."""
        told = ConvertProgress(
            progress.account_id,
            progress.state,
            str(progress.encrypted),
            str(progress.left),
            str(progress.failed),
            str(progress.updated),
        )
        try:
            if self._client is None:
                self._client = SyncClient(self._path, Role.CONVERT)
            self._client.ask(told)
        except AtRestError as error:
            log.debug("progress not told", cause=str(error))
            self.close()
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None
