"""A delivery worker of its own, for tests: stores one message, and is killed by the test.

Arguments: the site's directory, the recipient, where to stop ("renamed": before the mark that it
is stored; "replied": after it).
"""

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lmtp_atrest.crypto.records import SitePublic
from lmtp_atrest.delivery.unclear import Entry
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.store import RECORDS, Store
from tests.delivery.sites import DeliverySite


def stop(*_: Any) -> None:
    """Wait, in the midst of it, to be killed."""
    print("up", flush=True)
    time.sleep(60)


def main(root: Path, recipient: str, where: str) -> None:
    """Deliver, then stop."""
    public = SitePublic.load(root / "site.pub")
    records = Records(Store(RECORDS, f"sqlite:///{root / 'records.db'}"), public)
    site = SimpleNamespace(root=root, public=public, records=records)
    if where == "renamed":
        Entry.stored = stop  # type: ignore[method-assign, assignment]
    asyncio.run(DeliverySite(cast("Any", site)).send(recipient, end="open"))
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
