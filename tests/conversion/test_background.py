"""The convert service: who has work, and that it is done with public keys alone."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmtp_atrest.config import Config, Conversion, Mail
from lmtp_atrest.conversion import States, run
from lmtp_atrest.conversion.background import Background, Progress
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.records import AccountRecord
from tests.sites import PASSWORD, CheapSite


class Service:
    """The service over a site, with a clock that stands until a test moves it."""

    def __init__(self, site: CheapSite) -> None:
        self.site = site
        self.seconds = site.accounts._now() + 60
        state = f"sqlite:///{site.root}/conversion.db"
        config = Config(
            mail=Mail(root=site.root / "mail"),
            conversion=Conversion(state=state, messages_per_second=100_000),
        )
        self.states = States(state)
        self.states.open()
        self.stopping = threading.Event()
        self.told: list[Progress] = []
        self.heard = True
        self.during: Callable[[], object] = lambda: None
        self.background = Background(
            config,
            site.records,
            self.states,
            self.stopping,
            lambda: self.seconds,
            tell=self.tell,
        )

    def tell(self, progress: Progress) -> bool:
        self.told.append(progress)
        if progress.state == "running":
            self.during()
        return self.heard

    def clean(self, record: AccountRecord) -> bool:
        row = self.states.get(record.account_id)
        return row is not None and row.clean is not None


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "mail").mkdir()
    site = CheapSite(tmp_path)
    running = Service(site)
    yield running
    running.states.close()
    site.close()


def message(record: AccountRecord, number: int) -> Path:
    """A message in clear, dropped in by some other program."""
    for name in ("tmp", "new", "cur"):
        (Path(record.maildir) / name).mkdir(parents=True, exist_ok=True)
    path = Path(record.maildir) / "cur" / f"{number}.M1P1.host,S=2,W=3:2,S"
    path.write_bytes(b"x\n")
    return path


def is_sealed(path: Path) -> bool:
    return dcrypt.is_sealed(path.read_bytes())


def test_old_mail_is_encrypted_after_enable_and_swept_each_day(service: Service) -> None:
    plain = service.site.add("bob@example.org")
    left = message(plain, 1)
    alice = service.site.add("alice@example.org", PASSWORD)
    old = message(alice, 1)
    assert service.background.look() == 1
    assert (is_sealed(old), is_sealed(left), service.clean(alice)) == (True, False, True)
    dropped = message(alice, 2)
    assert service.background.look() == 0  # until the next sweep
    service.seconds += 86400 + 1
    assert service.background.look() == 1
    assert is_sealed(dropped)


def test_a_pause_and_trouble_are_respected(service: Service) -> None:
    alice = service.site.add("alice@example.org", PASSWORD)
    (Path(alice.maildir) / "new").mkdir(parents=True)
    message(alice, 1)
    (Path(alice.maildir) / "cur" / "2.M1P1.host,S=1,W=1:2,").symlink_to("/etc/passwd")
    assert service.background.look() == 1
    assert not service.clean(alice)
    assert service.background.look() == 0  # not again and again
    service.seconds += 3601
    assert service.background.look() == 1
    now = int(service.seconds * 1000)
    service.states.begin(alice.account_id, "encrypt", now)
    service.states.pause(alice.account_id)
    service.seconds += 90_000
    assert service.background.look() == 0


def test_a_pause_ends_one_run_and_a_restart_ends_none_for_good(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BATCH", 1)
    alice = service.site.add("alice@example.org", PASSWORD)
    messages = [message(alice, number) for number in range(3)]

    def state() -> tuple[str, int]:
        row = service.states.get(alice.account_id)
        assert row is not None
        return row.state, sum(map(is_sealed, messages))

    service.during = lambda: service.states.pause(alice.account_id)
    service.background.look()
    assert state() == ("paused", 1)
    assert not service.stopping.is_set(), "the pause of one run ended the service"
    service.seconds += 90_000
    assert service.background.look() == 0
    assert service.states.resume(alice.account_id)
    service.during = service.stopping.set
    service.background.look()
    assert state() == ("waiting", 1)
    service.stopping.clear()  # as after a restart
    service.during = lambda: None
    assert service.background.look() == 1
    assert state() == ("done", 3)
    assert not service.states.resume(alice.account_id)


def test_an_account_without_mail_or_under_another_run_is_no_trouble(service: Service) -> None:
    alice = service.site.add("alice@example.org", PASSWORD)
    assert service.background.look() == 1
    assert service.clean(alice)
    service.seconds += 90_000
    first = message(alice, 1)
    with service.states.exclusive(alice.account_id):
        service.background.look()
        assert not is_sealed(first)
    service.background.look()
    assert is_sealed(first)


def test_progress_is_told_and_told_again_after_it_was_not_heard(service: Service) -> None:
    record = service.site.add(password=PASSWORD)
    for number in range(130):
        message(record, number)
    service.background.look()
    under_way = service.told[0]
    assert (under_way.state, under_way.encrypted, under_way.left) == ("running", 64, 66)

    def figures() -> list[tuple[str, int, int]]:
        service.told.clear()
        service.background.look()
        return [(told.state, told.encrypted, told.left) for told in service.told]

    done = [("done", 130, 0)]
    assert figures() == done
    assert figures() == done, "the oldest is told again, to find out whether somebody listens"
    service.heard = False
    figures()
    service.heard = True
    assert figures() == done
