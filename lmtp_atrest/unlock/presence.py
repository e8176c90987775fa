"""Whether the site still knows a user, asked so that Dovecot cannot end up waiting for itself.

The question goes to Dovecot while one of its auth workers (30 by default) waits for our answer,
and takes another worker there. If all of them waited for us, nobody could log in until we gave up.
"""

from collections import OrderedDict
from collections.abc import Callable

from lmtp_atrest.directory import Directory
from lmtp_atrest.errors import Busy

WAITING_LIMIT = 15
# While so many wait, an answer of a short time ago has to do.
STALE_SECONDS = 600.0
REMEMBERED_LIMIT = 20_000


class Presence:
    """Asks the directory about users who log in; remembers who was there a short time ago."""

    def __init__(self, directory: Directory, now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self._waiting = 0
        self._seen: OrderedDict[str, float] = OrderedDict()

    async def known(self, name: str) -> bool:
        """False where the directory says that there is no such user.

        Busy at once where too many wait already; TemporaryFailure.
        """
        if self._waiting >= WAITING_LIMIT:
            if name in self._seen and self._now() - self._seen[name] < STALE_SECONDS:
                return True
            message = "too many wait for the directory"
            raise Busy(message, 2.0)
        self._waiting += 1
        try:
            found = await self._directory.lookup(name)
        finally:
            self._waiting -= 1
        self._seen.pop(name, None)
        if found is not None:
            self._seen[name] = self._now()
            if len(self._seen) > REMEMBERED_LIMIT:
                self._seen.popitem(last=False)
        return found is not None
