"""A mailbox in use by Dovecot 2.3 and 2.4 changes its form, and nobody sees anything of it."""

import base64
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtp_atrest.conversion import Direction, Job, Run
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.unlock.client import GrantUnwrap
from lmtp_atrest.unlock.requests import AccountRotate, ConvertGrant, Lookup, Role
from tests.integration.living import Living, secret
from tests.integration.mailprogram import (
    FOLDERS,
    MailProgram,
    at_work,
    content,
    mailbox,
    validities,
)
from tests.integration.site import ALICE, PASSWORD
from tests.peers.atrest import MAIL_USER

pytestmark = pytest.mark.peers

PROGRAMS = 4
MESSAGES = 240
WORK_SECONDS = 5.0
# "Duplicate file entry" in its list of UIDs is Dovecot's own: four programs on one mailbox bring
# it about without any conversion (seen in 3 runs of 6). "Fixed a duplicate" would be ours.
COMPLAINT = re.compile(r"(Error|Warning|Panic|Fatal): (?!.*Duplicate file entry)")


@pytest.fixture(params=["exchange", "lock"])
def exchange(request: pytest.FixtureRequest) -> bool:
    """Whether names change places, or Dovecot's list of UIDs is locked meanwhile."""
    return bool(request.param == "exchange")


@pytest.fixture
def converting(site: Living, exchange: bool) -> Iterator["Conversions"]:
    made = Conversions(site, exchange=exchange)
    fill(made.maildir)
    yield made
    made.unwrap.close()


class Conversions:
    """Runs over alice's mailbox, between plain mail and two generations of her keys."""

    def __init__(self, site: Living, *, exchange: bool) -> None:
        self.exchange = exchange
        self.old = self._public(site)
        site.admin(AccountRotate(ALICE, secret(PASSWORD)))
        self.new = self._public(site)
        granted = site.admin(ConvertGrant(ALICE, secret(PASSWORD), "reseal", "1000000"))
        self.unwrap = GrantUnwrap(
            site.atrest.run / "unlock/admin.sock", Role.ADMIN, str(granted["grant"])
        )
        self.root = site.dovecot.mail
        self.maildir = self.root / ALICE / "Maildir"

    @staticmethod
    def _public(site: Living) -> PublicKey:
        return PublicKey.from_pem(base64.b64decode(site.admin(Lookup(ALICE))["public_key"]))

    def run(self, direction: Direction, key: PublicKey) -> int:
        """One pass; how many messages it changed."""
        with Maildir.open(self.root, self.maildir, create=False) as box:
            counts = Run(box, Job(direction, key, self.unwrap), exchange=self.exchange)()
        assert not counts.failed, counts.failures
        return counts.done

    def finish(self, direction: Direction, key: PublicKey) -> None:
        """Passes until one finds nothing, as `convert` does."""
        assert any(not self.run(direction, key) for _ in range(3))

    def forms(self) -> set[str]:
        """Which forms the files have: plain, or a key id."""
        found = set()
        for path in self.files():
            first = path.read_bytes()[: dcrypt.HEADER_LIMIT]
            sealed = dcrypt.is_sealed(first)
            found.add(dcrypt.parse_header(first).key_id.hex() if sealed else "plain")
        return found

    def files(self) -> list[Path]:
        return [p for sub in ("new", "cur") for p in self.maildir.rglob(f"{sub}/*")]


def fill(maildir: Path, messages: int = MESSAGES) -> None:
    """Plain mail from before, in several folders, new and seen, as Dovecot names it."""
    for number, folder in zip(range(messages), itertools.cycle(FOLDERS)):
        directory = maildir / ("" if folder == "INBOX" else f".{folder}")
        for name in ("tmp", "new", "cur"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        data = content(f"before-{number}")
        name = f"17{number:08}.M{number}P1.host,S={len(data)},W={len(data)}"
        place = f"new/{name}" if number % 3 == 0 else f"cur/{name}:2,{'FS'[number % 2 :]}"
        (directory / place).write_bytes(data)
        os.utime(directory / place, (10**9 + number, 10**9 + number))
    for path in (maildir.parent, *maildir.parent.rglob("*")):
        shutil.chown(path, MAIL_USER, MAIL_USER)


def test_a_mailbox_in_use_goes_there_and_back(site: Living, converting: "Conversions") -> None:
    with site.dovecot.login(ALICE, PASSWORD) as watching:
        before, valid = mailbox(watching), validities(watching)
        assert len(before) == MESSAGES
        # Every fifth message is nobody's: only a conversion touches it.
        untouched, *shares = (
            dict(list(before.items())[n :: PROGRAMS + 1]) for n in range(PROGRAMS + 1)
        )
        programs = [
            MailProgram(site.dovecot, ALICE, PASSWORD, own, seed)
            for seed, own in enumerate(shares)
        ]
        steps = itertools.cycle(
            [
                (Direction.ENCRYPT, converting.old),
                (Direction.REWRAP, converting.new),
                (Direction.DECRYPT, converting.new),
                (Direction.ENCRYPT, converting.new),
                (Direction.RESEAL, converting.old),
                (Direction.DECRYPT, converting.old),
            ]
        )
        logged, until, changed = len(site.dovecot.log()), time.monotonic() + WORK_SECONDS, []
        with at_work(programs) as wrong:
            for direction, key in steps:
                changed.append(converting.run(direction, key))
                if time.monotonic() > until or wrong:
                    break
        print("changed", changed, [program.counts for program in programs])
        assert all(changed), changed
        converting.finish(Direction.RESEAL, converting.new)
        assert converting.forms() == {converting.new.key_id.hex()}

        expected = dict(untouched)
        for program in programs:
            expected |= program.own
        assert mailbox(watching) == expected
        assert validities(watching) == valid
        assert len(converting.files()) == len(expected)
        assert not list(converting.maildir.rglob("tmp/*"))
        log = site.dovecot.log()[logged:]
        assert not [line for line in log.splitlines() if COMPLAINT.search(line)]
