import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lmtp_atrest.config import Evict
from lmtp_atrest.errors import TemporaryFailure, UsageError
from lmtp_atrest.unlock import evict
from lmtp_atrest.unlock.evict import (
    Evictor,
    EvictService,
    count_sessions,
    remove_all_caches,
    remove_cache,
)
from lmtp_atrest.unlock.protocol import End, Login, Peer, Reply, Role, SessionLock, Who
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
    """Two commands over a file that holds the number of sessions."""

    def __init__(self, root: Path) -> None:
        self.sessions = root / "sessions"
        self.calls = root / "calls"
        self.who = self.script(
            root / "who", f'printf "{ALICE}\\t%s\\timap\\n" "$(cat {self.sessions})"'
        )
        self.kick = self.script(root / "kick", f"echo 0 > {self.sessions}; exit 68")

    def script(self, path: Path, body: str) -> Path:
        path.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)
        return path

    def section(self, socket: Path | None = None) -> Evict:
        return Evict(
            socket=socket, peers=(ME,), who=f"{self.who} {{name}}", end=f"{self.kick} {{name}}"
        )


@pytest.fixture
def doveadm(tmp_path: Path) -> FakeDoveadm:
    fake = FakeDoveadm(tmp_path)
    fake.sessions.write_text("2")
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
    service = EvictService(doveadm.section(path), caches)
    server = RoleServer(Role.EVICT, path, frozenset({os.geteuid()}), service.answer)
    server.start()
    yield path
    await server.stop()


async def test_ending_kicks_until_nobody_is_in_and_removes_the_cache(
    helper: Path, doveadm: FakeDoveadm, caches: Path
) -> None:
    assert await Evictor(helper).end((ALICE,), ACCOUNT) == 0
    assert doveadm.calls.read_text().splitlines() == [
        f"{doveadm.who} {ALICE}",
        f"{doveadm.kick} {ALICE}",
        f"{doveadm.who} {ALICE}",
    ]
    assert os.listdir(caches) == []  # noqa: PTH208 - no Path in async code


async def test_who_stays_is_counted(
    helper: Path, doveadm: FakeDoveadm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "END_SECONDS", 0.05)
    doveadm.script(doveadm.kick, "exit 0")
    assert await Evictor(helper).end((ALICE,), ACCOUNT) == 2


async def test_every_name_of_an_account_is_ended(helper: Path, doveadm: FakeDoveadm) -> None:
    doveadm.sessions.write_text("0")
    assert await Evictor(helper).end((ALICE, "a.l@example.org"), ACCOUNT) == 0
    assert "a.l@example.org" in doveadm.calls.read_text()


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
        doveadm.sessions.write_text("1")
        unlock.clock.seconds += 12 * 3600
        await unlock.service.expire()
        assert doveadm.sessions.read_text() == "0\n"


@pytest.mark.parametrize(
    "name", ["", "*", "a*", "?", "-A", "--all", "a b", "a\tb", "a\nb", "a\0b", "al\x7f"]
)
async def test_a_name_that_a_command_could_misread_never_reaches_it(
    doveadm: FakeDoveadm, caches: Path, name: str
) -> None:
    service = EvictService(doveadm.section(), caches)
    for request in (Who(name), End(name, ACCOUNT)):
        assert (await service.answer(request, ROOT_PEER)).result == "error"
    assert not doveadm.calls.exists()
    assert (caches / ACCOUNT).exists()


async def test_a_shell_never_sees_a_name(doveadm: FakeDoveadm, caches: Path) -> None:
    service = EvictService(doveadm.section(), caches)
    name = "$(touch${IFS}x);\"`'\\"
    assert await service.answer(Who(name), ROOT_PEER) == Reply("sessions", {"count": 0})
    assert doveadm.calls.read_text() == f"{doveadm.who} {name}\n"


@pytest.mark.parametrize(
    "account",
    ["", "..", ".", "../" * 10, ACCOUNT + "/..", ACCOUNT.upper(), ACCOUNT + "\n", "a" * 31],
)
async def test_nothing_but_an_account_id_names_a_cache(
    doveadm: FakeDoveadm, caches: Path, account: str
) -> None:
    service = EvictService(doveadm.section(), caches)
    assert (await service.answer(End(ALICE, account), ROOT_PEER)).result == "error"
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


def test_sessions_are_counted_from_doveadms_table() -> None:
    assert [count_sessions(TABLE, name) for name in ("alice", "Alice", "bob", "ali", "#")] == [
        2,
        2,
        1,
        0,
        0,
    ]
    assert count_sessions("", "alice") == 0


async def test_a_command_that_hangs_or_is_missing_is_a_failure(
    doveadm: FakeDoveadm, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evict, "COMMAND_SECONDS", 0.1)
    doveadm.script(doveadm.who, "exec sleep 60")
    service = EvictService(doveadm.section(), caches)
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
