"""Maildirs that stay open between deliveries, so that not every message opens them anew."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmtp_atrest.maildir.mailbox import Maildir

KEEP = 64  # of the mailboxes used last; five descriptors each

Places = tuple[Path, Path]


class KeptMaildirs:
    """The mailboxes used last. Any thread may use it; each Maildir serves one user at a time."""

    def __init__(self, open_maildir: Callable[[Path, Path], Maildir]) -> None:
        self._open = open_maildir
        self._kept: OrderedDict[Places, Maildir] = OrderedDict()

    @contextmanager
    def use(self, path: Path, inbox: Path) -> Iterator[Maildir]:
        """The Maildir at these places, opened anew unless they lead to what was kept.

        Raises what opening raises. After an exception of the user nothing is kept.
        """
        maildir = self._kept.pop((path, inbox), None)
        if maildir is not None and not maildir.still_there():
            maildir.close()
            maildir = None
        if maildir is None:
            maildir = self._open(path, inbox)
        try:
            yield maildir
        except BaseException:
            maildir.close()
            raise
        self._keep((path, inbox), maildir)

    def _keep(self, places: Places, maildir: Maildir) -> None:
        # One operation each on the dictionary, so that threads need no lock.
        surplus = [self._kept.pop(places, None)]
        self._kept[places] = maildir
        if len(self._kept) > KEEP:
            surplus.append(self._kept.popitem(last=False)[1])
        for one in surplus:
            if one is not None:
                one.close()

    def close(self) -> None:
        """Close them all."""
        while self._kept:
            self._kept.popitem()[1].close()
