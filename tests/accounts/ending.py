"""A program that does one operation in many processes, each of which ends at another commit.

`python -m tests.accounts.ending ROOT OPERATION` copies the stores in ROOT to a directory for each
commit, and forks: the copy is left as a process leaves it that ends just before that commit, which
is after the one before. The last process runs through.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from lmtp_atrest.crypto.records import SiteKey
from tests.accounts.faults import CopiedSite, cheapen

ENDED = 7


def end_at(site: CopiedSite, number: int) -> None:
    count = 0

    def commit(_connection: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os._exit(ENDED)

    for part in (site.records, site.vaults, site.pins):
        event.listen(part.store._engine, "commit", commit)


def run(root: Path, operation: str, number: int) -> int:
    """The exit code of a process that does it in a copy of its own."""
    from tests.accounts.test_crashes import OPERATIONS

    copy = root / f"{number:02d}"
    copy.mkdir()
    for file in root.glob("*.db"):
        shutil.copy(file, copy)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    site = CopiedSite(copy, SiteKey.load(root / "site.key"))
    end_at(site, number)
    OPERATIONS[operation](site)
    os._exit(0)


def main(root: Path, operation: str) -> None:
    cheapen(pytest.MonkeyPatch())
    number, code = 0, ENDED
    while code == ENDED:
        number += 1
        code = run(root, operation, number)
    sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
