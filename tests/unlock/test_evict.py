import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lmtp_atrest.config import Config, Evict, NamesSection, Unlock
from lmtp_atrest.errors import TemporaryFailure, UsageError
from lmtp_atrest.unlock import evict
from lmtp_atrest.unlock.caches import keep_below, remove_all_caches, remove_cache
from lmtp_atrest.unlock.evict import Evictor, EvictService, read_table
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import Caches, End, Forget, Login, Role, SessionLock, Who
from lmtp_atrest.unlock.server import RoleServer
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, PASSWORD
from tests.unlock.running import ME, running

ACCOUNT = "0123456789abcdef" * 2
ROOT_PEER = Peer(Role.EVICT, 0)
TABLE = (
    "username\t#\tproto\t(pids)\t(ips)\nalice\t2\timap\t(7 8)\t(::1)\nbob\t1\timap\t(9)\t(::1)\n"
)


class FakeDoveadm:
    """Two commands over a file that holds a table of sessions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sessions = root / "sessions"
        self.calls = root / "calls"
        self.who = self.script(root / "who", f"cat {self.sessions}")
        self.kick = self.script(root / "kick", f"echo username > {self.sessions}; exit 68")

    def show(self, **sessions: int) -> None:
        """Let this many sessions of each user be there; `_at_` stands for the @."""
        rows = [f"{n.replace('_at_', '@')}\t{c}\timap\t(7)\t(::1)\n" for n, c in sessions.items()]
        self.sessions.write_text("username\t#\tproto\t(pids)\t(ips)\n" + "".join(rows))

    def script(self, path: Path, body: str) -> Path:
        path.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)
        return path

    def section(self, socket: Path | None = None) -> Evict:
        return Evict(socket=socket, peers=(ME,), who=str(self.who), end=f"{self.kick} {{name}}")

    def service(self, caches: Path, socket: Path | None = None, **names: Any) -> EvictService:
        unlock = Unlock(evict=self.section(socket), cache_root=caches)
        return EvictService(Config(unlock=unlock, names=NamesSection(**names)))


@pytest.fixture
def doveadm(tmp_path: Path) -> FakeDoveadm:
    fake = FakeDoveadm(tmp_path)
    fake.show(**{ALICE: 2, "bob@example.org": 1})
    return fake


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    root = tmp_path / "caches"
    (root / ACCOUNT / "mailboxes" / "INBOX").mkdir(parents=True)
    (root / ACCOUNT / "mailboxes" / "INBOX" / "dovecot.index.cache").write_text("plaintext")
    return root


@pytest_asyncio.fixture
async def helper(doveadm: FakeDoveadm, caches: Path, sockets: Path) -> AsyncIterator[Path]:
    path = sockets / "evict.sock"
    service = doveadm.service(caches, path)
    server = RoleServer(Role.EVICT, path, frozenset({os.geteuid()}), service.answer)
    server.start()
    yield path
    await server.stop()


async def test_ending_kicks_until_nobody_is_in_and_removes_the_cache(
    helper: Path, doveadm: FakeDoveadm, caches: Path
) -> None:
    assert await Evictor(helper).end((ALICE,), ACCOUNT) == 0
    assert doveadm.calls.read_text().splitlines() == [
        f"{doveadm.who} ",
        f"{doveadm.kick} {ALICE}",
        f"{doveadm.who} ",
    ]
    assert os.listdir(caches) == []  # noqa: PTH208 - no Path in async code


async def test_who_stays_is_counted(
    helper: Path, doveadm: FakeDoveadm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "END_SECONDS", 0.05)
    doveadm.script(doveadm.kick, "exit 0")
    assert await Evictor(helper).end((ALICE,), ACCOUNT) == 2


async def test_every_name_of_an_account_is_ended(helper: Path, doveadm: FakeDoveadm) -> None:
    doveadm.show(**{"a.l@example.org": 1})
    assert await Evictor(helper).end((ALICE, "a.l@example.org"), ACCOUNT) == 0
    assert f"{doveadm.kick} a.l@example.org" in doveadm.calls.read_text()


async def test_sessions_are_found_under_every_spelling_of_a_name(
    doveadm: FakeDoveadm, caches: Path
) -> None:
    settings: dict[str, Any] = {
        "default_domain": "example.org",
        "alias_domains": {"example.net": "example.org"},
    }
    service = doveadm.service(caches, **settings)
    doveadm.show(**{"alice": 1, "Alice@example.net": 2, "bob": 1})
    assert await service.answer(Who(ALICE), ROOT_PEER) == Reply("sessions", {"count": 3})
    assert (await service.answer(End(ALICE, ACCOUNT), ROOT_PEER))["remaining"] == 0
    calls = doveadm.calls.read_text().splitlines()
    assert {f"{doveadm.kick} alice", f"{doveadm.kick} Alice@example.net"} <= set(calls)
    assert f"{doveadm.kick} bob" not in calls


async def test_without_a_helper_or_with_a_broken_one_nobody_knows(
    helper: Path, doveadm: FakeDoveadm
) -> None:
    assert await Evictor(None).end((ALICE,), ACCOUNT) == "unknown"
    assert await Evictor(helper.with_name("none")).end((ALICE,), ACCOUNT) == "unknown"
    doveadm.script(doveadm.who, "exit 75")
    assert await Evictor(helper).end((ALICE,), ACCOUNT) == "unknown"


async def test_locking_a_session_ends_its_readers(
    people: CheapSite, helper: Path, doveadm: FakeDoveadm, sockets: Path
) -> None:
    async with running(people, sockets, evict=doveadm.section(helper)) as unlock:
        login = Login(ALICE, "imap", "PLAIN", True, PASSWORD)
        assert (await unlock.service.answer(login, Peer(Role.DOVECOT, 0))).result == "opened"
        reply = await unlock.service.answer(SessionLock(ALICE), Peer(Role.ADMIN, 0))
        assert dict(reply.fields) == {"vaults": 1, "readers_remaining": 0}
        await unlock.service.answer(login, Peer(Role.DOVECOT, 0))
        doveadm.show(**{ALICE: 1})
        unlock.clock.seconds += 12 * 3600
        await unlock.service.expire()
        assert ALICE not in doveadm.sessions.read_text()


@pytest.mark.parametrize("name", ["*", "a*", "?", "-A", "--all", "a b", "a\fb", "al\x7f"])
async def test_a_name_that_a_command_could_misread_never_reaches_it(
    doveadm: FakeDoveadm, caches: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "END_SECONDS", 0.05)
    doveadm.show(**{name: 1})
    service = doveadm.service(caches)
    reply = await service.answer(End(name, ACCOUNT), ROOT_PEER)
    assert reply == Reply("ended", {"remaining": 1})
    assert str(doveadm.kick) not in doveadm.calls.read_text()


async def test_a_shell_never_sees_a_name(doveadm: FakeDoveadm, caches: Path) -> None:
    name = "$(touch${IFS}x);\"`'\\"
    doveadm.show(**{name: 1})
    service = doveadm.service(caches)
    assert (await service.answer(End(name, ACCOUNT), ROOT_PEER))["remaining"] == 0
    assert f"{doveadm.kick} {name}\n" in doveadm.calls.read_text()


@pytest.mark.parametrize(
    "account",
    ["", "..", ".", "../" * 10, ACCOUNT + "/..", ACCOUNT.upper(), ACCOUNT + "\n", "a" * 31],
)
async def test_nothing_but_an_account_id_names_a_cache(
    doveadm: FakeDoveadm, caches: Path, account: str
) -> None:
    service = doveadm.service(caches)
    for request in (End(ALICE, account), Forget(account)):
        assert (await service.answer(request, ROOT_PEER)).result == "error"
    with pytest.raises(UsageError):
        remove_cache(caches, account)
    assert (caches / ACCOUNT).exists()


def test_links_in_a_cache_are_removed_and_not_followed(caches: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "mail").mkdir(parents=True)
    (caches / ACCOUNT / "link").symlink_to(precious)
    remove_cache(caches, ACCOUNT)
    assert not (caches / ACCOUNT).exists()
    (caches / ACCOUNT).symlink_to(precious)
    remove_cache(caches, ACCOUNT)
    assert (precious / "mail").is_dir()


def test_a_cache_root_that_is_a_link_is_refused(caches: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(caches)
    with pytest.raises(TemporaryFailure):
        remove_cache(link, ACCOUNT)
    assert (caches / ACCOUNT).exists()


def test_no_cache_is_no_error(tmp_path: Path, caches: Path) -> None:
    remove_cache(tmp_path / "none", ACCOUNT)
    remove_cache(caches, "f" * 32)
    assert (caches / ACCOUNT).exists()


def test_sessions_are_read_from_doveadms_table() -> None:
    assert read_table(TABLE) == [("alice", 2), ("bob", 1)]
    assert read_table("") == read_table("username\t#\n") == []


async def test_a_command_that_hangs_or_is_missing_is_a_failure(
    doveadm: FakeDoveadm, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "COMMAND_SECONDS", 0.1)
    doveadm.script(doveadm.who, "exec sleep 60")
    service = doveadm.service(caches)
    assert await service.answer(Who(ALICE), ROOT_PEER) == Reply("temporary-failure")
    doveadm.who.unlink()
    assert await service.answer(Who(ALICE), ROOT_PEER) == Reply("temporary-failure")


def test_at_the_start_every_accounts_cache_goes_and_nothing_else(tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    for name in (ACCOUNT, "f" * 32, "somebody-elses"):
        (caches / name).mkdir(parents=True)
        (caches / name / "dovecot.index.cache").write_text("Subject: canary")
    remove_all_caches(caches)
    assert [path.name for path in caches.iterdir()] == ["somebody-elses"]
    remove_all_caches(tmp_path / "none")


def cache_of(caches: Path, account_id: str, size: int = 1, age: float = 0) -> Path:
    path = caches / account_id / ".INBOX" / "dovecot.index.cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return caches / account_id


async def test_a_cache_goes_with_the_last_session_of_a_closed_vault(
    people: CheapSite, doveadm: FakeDoveadm, sockets: Path, tmp_path: Path
) -> None:
    caches, socket = tmp_path / "ram", sockets / "evict.sock"
    evicting = doveadm.service(caches, socket)
    server = RoleServer(Role.EVICT, socket, frozenset({os.geteuid()}), evicting.answer)
    server.start()
    record = people.accounts.record(ALICE)
    assert record is not None
    strangers = cache_of(caches, "f" * 32)
    async with running(people, sockets, evict=doveadm.section(socket)) as unlock:
        own = cache_of(caches, record.account_id)
        login = Login(ALICE, "imap", "PLAIN", True, PASSWORD)
        assert (await unlock.service.answer(login, Peer(Role.DOVECOT, 0))).result == "opened"
        doveadm.show(bob=1)
        await unlock.service.forget_unused_caches()
        assert own.exists(), "the vault is open: the next page of a webmail needs it"
        assert not strangers.exists(), "no account has this id"
        doveadm.show(**{ALICE: 1})
        unlock.clock.seconds += 31 * 60
        evicting._table_at = float("-inf")
        await unlock.service.forget_unused_caches()
        assert own.exists(), "somebody is in"
        doveadm.show(bob=1)
        evicting._table_at = float("-inf")
        await unlock.service.forget_unused_caches()
        assert not own.exists()
    await server.stop()


async def test_all_caches_are_listed_in_pages(
    doveadm: FakeDoveadm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "CACHES_PAGE", 2)
    ids = [f"{number:032x}" for number in range(5)]
    for account_id in ids:
        cache_of(tmp_path / "ram", account_id)
    (tmp_path / "ram" / "somebody-elses").mkdir()
    service = doveadm.service(tmp_path / "ram")
    pages, last = [], ""
    while page := (await service.answer(Caches(last), ROOT_PEER))["accounts"]:
        pages.append(page)
        last = page[-1]
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    assert (await doveadm.service(tmp_path / "none").answer(Caches(), ROOT_PEER))["accounts"] == []


def test_over_the_limit_the_longest_unused_go_first(tmp_path: Path) -> None:
    oldest, newer, newest = (
        cache_of(tmp_path, letter * 32, size=100_000, age=age)
        for letter, age in (("c", 300), ("a", 200), ("b", 100))
    )
    (oldest / "planted").symlink_to("/etc/passwd")
    assert keep_below(tmp_path, 1 << 20) == []
    assert keep_below(tmp_path, 250_000) == ["c" * 32]
    assert [oldest.exists(), newer.exists(), newest.exists()] == [False, True, True]
    assert keep_below(tmp_path, 0) == ["a" * 32, "b" * 32]
    assert keep_below(tmp_path / "none", 0) == []
