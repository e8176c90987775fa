"""The operations of keys as the sockets offer them: what each answers, and what it ends."""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lmtp_atrest.config import AtRest, Recovery, Site
from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock import enrolment
from lmtp_atrest.unlock.administration import Administration
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    AccountAdmin,
    AccountCode,
    AccountDisable,
    AccountEnable,
    AccountFreeze,
    AccountJoin,
    AccountPassword,
    AccountPasswordAbort,
    AccountRecover,
    AccountReset,
    AccountRotate,
    AccountShow,
    AccountSuspend,
    AccountThaw,
    AdminChange,
    AdminExport,
    AdminResetPassword,
    AdminSet,
    AdminStatus,
    AppLogin,
    AppPasswordAdd,
    AppPasswordRemove,
    AuditList,
    Login,
    Lookup,
    Open,
    Request,
    Role,
    SessionList,
)
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, BOB, PASSWORD
from tests.unlock.running import Running, config_for, running

ADMIN, DOVECOT, READER = (Peer(role, 1000) for role in (Role.ADMIN, Role.DOVECOT, Role.READER))
NEW = Secret(b"a fresh and rather long phrase")
NEWER = Secret(b"another phrase, longer than that")
ROOT, ROOT2 = Secret(b"the site's own escape hatch"), Secret(b"a second hatch, opened later")
WEAK = Secret(b"password1")


async def ask(unlock: Running, request: Request, peer: Peer = ADMIN) -> Reply:
    return await unlock.service.answer(request, peer)


async def done(unlock: Running, request: Request) -> Reply:
    reply = await ask(unlock, request)
    assert reply.result not in {"wrong-secret", "usage", "wrong-state", "conflict"}, reply.fields
    return reply


async def login(unlock: Running, secret: Secret, name: str = ALICE, **more: Any) -> Reply:
    request = Login(name, "imap", "PLAIN", True, secret, source="192.0.2.1", **more)
    return await ask(unlock, request, DOVECOT)


async def app_login(unlock: Running, secret: str, **more: Any) -> str:
    fields = {"service": "imap", "mechanism": "PLAIN", "source": "192.0.2.1", **more}
    return (await ask(unlock, AppLogin(ALICE, Secret(secret.encode()), **fields), DOVECOT)).result


async def slots(unlock: Running, name: str = ALICE) -> list[tuple[str, str]]:
    shown = await ask(unlock, AccountShow(name), ADMIN)
    return sorted((slot["kind"], slot["state"]) for slot in shown["slots"])


def code_of(reply: Reply) -> Secret:
    return Secret(str(reply["code"]).encode())


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """What the site's password command writes down, and whether it says yes."""
    return tmp_path / "taken"


def command(taken: Path, ending: str = "") -> str:
    program = f"import sys, os; open({str(taken)!r}, 'a').write(repr(sys.stdin.read())); {ending}"
    return shlex.join([sys.executable, "-c", program, "{name}"])


def site_with(people: CheapSite, sockets: Path, **sections: Any) -> Running:
    """The service with other sections of the configuration, not listening."""
    return Running(people, config_for(sockets).model_copy(update=sections))


@pytest_asyncio.fixture
async def unlock(people: CheapSite, sockets: Path) -> AsyncIterator[Running]:
    async with running(people, sockets) as service:
        yield service


# ---- recovery code


async def test_a_code_opens_once_and_gives_another(unlock: Running) -> None:
    first = await done(unlock, AccountCode(ALICE, PASSWORD))
    typed = str(first["code"]).lower().replace("0", "o").replace("1", "l").replace("-", " ")
    reply = await done(unlock, AccountRecover(ALICE, Secret(typed.encode()), NEW))
    assert reply.result == "recovered"
    assert (await login(unlock, NEW)).result == "opened"
    assert (await login(unlock, PASSWORD)).result == "refused"
    again = await ask(unlock, AccountRecover(ALICE, code_of(first), NEWER))
    assert again.result == "wrong-secret"
    assert (await ask(unlock, AccountRecover(ALICE, Secret(b"no code"), NEW))).result == "bad-code"
    assert (await done(unlock, AccountRecover(ALICE, code_of(reply), NEWER))).result == "recovered"


async def test_of_two_uses_of_a_code_at_once_one_wins(unlock: Running) -> None:
    code = code_of(await done(unlock, AccountCode(ALICE, PASSWORD)))
    secrets = [Secret(b"first of the two phrases"), Secret(b"second of the two phrases")]
    replies = await asyncio.gather(
        *(ask(unlock, AccountRecover(ALICE, code, secret)) for secret in secrets)
    )
    assert sorted(reply.result for reply in replies)[-1] == "recovered"
    assert sorted(reply.result for reply in replies)[0] in {"conflict", "wrong-secret"}
    opened = [(await login(unlock, secret)).result for secret in secrets]
    assert sorted(opened) == ["opened", "refused"]


@pytest.mark.parametrize(
    ("mail_code", "address", "complaint"),
    [
        (False, "alice@elsewhere.example", "mails no recovery codes"),
        (True, "other@example.org", "outside this site"),
        (True, "other@Example.ORG", "outside this site"),
        (True, "nowhere", "outside this site"),
    ],
)
async def test_a_code_is_mailed_only_out_of_the_site_and_where_it_says_so(
    people: CheapSite, sockets: Path, mail_code: bool, address: str, complaint: str
) -> None:
    unlock = site_with(people, sockets, recovery=Recovery(mail_code=mail_code))
    reply = await ask(unlock, AccountCode(ALICE, PASSWORD, address))
    assert reply.result == "usage"
    assert complaint in reply["reason"]
    assert await slots(unlock) == [("password", "active")]


async def test_enable_gives_a_code_and_a_warning_where_the_password_is_weak(
    unlock: Running,
) -> None:
    reply = await done(unlock, AccountEnable(BOB, WEAK))
    assert reply.result == "enabled"
    assert recovery_code.looks_like(str(reply["code"]))
    assert "warning" in reply.fields
    assert await slots(unlock, BOB) == [("password", "active"), ("recovery-code", "active")]


# ---- passwords


async def test_a_password_changes_here_and_at_the_site(
    people: CheapSite, sockets: Path, taken: Path
) -> None:
    unlock = site_with(people, sockets, site=Site(password_command=command(taken)))
    assert (await login(unlock, PASSWORD)).result == "opened"
    reply = await done(unlock, AccountPassword(ALICE, PASSWORD, NEW))
    assert reply.result == "changed"
    both = f"{PASSWORD.reveal().decode()}\n{NEW.reveal().decode()}\n"
    assert taken.read_text() == repr(both)  # noqa: ASYNC240 - nobody waits
    assert (await ask(unlock, SessionList()))["sessions"] == []
    assert await slots(unlock) == [("password", "active"), ("password", "pending")]
    assert (await login(unlock, PASSWORD)).result == "opened"
    # A reader that the site did not check completes nothing.
    assert (await ask(unlock, Open(ALICE, NEW, "192.0.2.1"), READER)).result == "opened"
    assert await slots(unlock) == [("password", "active"), ("password", "pending")]
    assert (await login(unlock, NEW)).result == "opened"
    assert await slots(unlock) == [("password", "active")]
    assert (await login(unlock, PASSWORD)).result == "refused"
    assert (await ask(unlock, AccountPasswordAbort(ALICE))).result == "wrong-state"


async def test_the_password_of_plain_users_is_the_sites_alone(
    people: CheapSite, sockets: Path, taken: Path
) -> None:
    unlock = site_with(people, sockets, site=Site(password_command=command(taken)))
    for name in (BOB, "nobody-of-ours@example.org"):
        reply = await done(unlock, AccountPassword(name, PASSWORD, NEW))
        assert (reply.result, reply["names"], reply["state"]) == ("changed", [name], "plain")
    refusing = site_with(
        people, sockets, site=Site(password_command=command(taken, "sys.exit(1)"))
    )
    assert (await ask(refusing, AccountPassword(BOB, PASSWORD, NEW))).result == "wrong-state"


@pytest.mark.parametrize(
    ("ending", "result", "left"),
    [
        ("sys.exit(1)", "wrong-state", [("password", "active")]),
        ("os.kill(os.getpid(), 9)", "changed", [("password", "active"), ("password", "pending")]),
    ],
)
async def test_a_site_that_says_no_or_nothing_leaves_what_works(
    people: CheapSite, sockets: Path, taken: Path, ending: str, result: str, left: list[Any]
) -> None:
    unlock = site_with(people, sockets, site=Site(password_command=command(taken, ending)))
    reply = await ask(unlock, AccountPassword(ALICE, PASSWORD, NEW))
    assert reply.result == result
    assert await slots(unlock) == left
    assert (await login(unlock, PASSWORD)).result == "opened"
    if left[1:]:
        assert "both open the mail" in reply["warning"]
        assert (await done(unlock, AccountPasswordAbort(ALICE))).result == "changed"
        assert (await login(unlock, NEW)).result == "refused"


async def test_without_a_command_a_password_is_joined_and_weak_ones_are_refused(
    people: CheapSite, sockets: Path, taken: Path
) -> None:
    unlock = site_with(people, sockets)
    refused = await ask(unlock, AccountPassword(ALICE, PASSWORD, NEW))
    assert refused.result == "wrong-state"
    assert "join" in refused["reason"]
    assert (await login(unlock, NEW)).result == "refused"
    assert (await done(unlock, AccountJoin(ALICE, NEW, PASSWORD))).result == "joined"
    assert (await login(unlock, NEW)).result == "opened"
    code = code_of(await done(unlock, AccountCode(ALICE, NEW)))
    assert (await done(unlock, AccountJoin(ALICE, NEWER, code, by="code"))).result == "joined"
    assert (await login(unlock, NEW)).result == "refused"
    weak = await ask(unlock, AccountRecover(ALICE, code, WEAK))
    assert weak.result == "usage"
    assert (await ask(unlock, AccountJoin(ALICE, NEW, PASSWORD))).result == "wrong-secret"
    assert (await ask(unlock, AccountJoin(ALICE, NEW, PASSWORD, by="luck"))).result == "usage"


# ---- keys


async def test_a_reset_closes_old_mail_and_a_join_opens_it_again(unlock: Running) -> None:
    before = (await login(unlock, PASSWORD))["keys"]
    reply = await done(unlock, AccountReset(ALICE, NEW))
    assert (reply.result, reply["vaults_closed"], before) == ("reset", 1, "1")
    assert (await login(unlock, NEW))["keys"] == "1"
    assert (await login(unlock, PASSWORD)).result == "refused"
    assert (await ask(unlock, AccountJoin(ALICE, WEAK, PASSWORD))).result == "wrong-secret"
    joined = await done(unlock, AccountJoin(ALICE, NEW, PASSWORD))
    assert (joined["vaults_closed"], joined["closed_vaults"]) == (0, 0)
    assert (await login(unlock, NEW))["keys"] == "2"


async def test_a_join_says_when_it_gives_the_administrator_more(unlock: Running) -> None:
    await done(unlock, AdminSet(ROOT))  # alice was encrypted before
    await done(unlock, AccountReset(ALICE, NEW))
    refused = await ask(unlock, AccountJoin(ALICE, NEW, PASSWORD))
    assert refused.result == "usage"
    assert "administrator" in refused["reason"]
    await done(unlock, AccountJoin(ALICE, NEW, PASSWORD, accept_admin=True))
    assert (await login(unlock, NEW))["keys"] == "2"


async def test_rotate_leave_and_return(unlock: Running) -> None:
    await done(unlock, AccountRotate(ALICE, PASSWORD, compromised=True))
    assert (await login(unlock, PASSWORD))["keys"] == "2"
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    assert record.reencrypt
    assert (await done(unlock, AccountDisable(ALICE, PASSWORD)))["state"] == "leaving"
    leaving = await login(unlock, PASSWORD)
    assert (leaving.result, leaving["state"], leaving["keys"]) == ("opened", "leaving", "2")
    assert (await ask(unlock, AccountDisable(ALICE, PASSWORD))).result == "wrong-state"
    assert (await ask(unlock, AccountReset(ALICE, NEW))).result == "wrong-state"
    undone = await done(unlock, AccountDisable(ALICE, PASSWORD, undo=True))
    assert undone["state"] == "encrypted"


async def test_a_rotation_that_no_login_could_carry_is_refused(unlock: Running) -> None:
    result = ""
    for _ in range(20):
        result = (await ask(unlock, AccountRotate(ALICE, PASSWORD))).result
        if result != "rotated":
            break
    assert result == "wrong-state"
    reply = await login(unlock, PASSWORD)
    assert reply.result == "opened"
    assert 7 <= int(reply["keys"]) <= 10


# ---- freezing


async def test_a_frozen_account_opens_for_nobody_until_it_is_thawed(unlock: Running) -> None:
    code = code_of(await done(unlock, AccountCode(ALICE, PASSWORD)))
    await login(unlock, PASSWORD)
    assert (await done(unlock, AccountFreeze(ALICE)))["frozen"]
    assert (await ask(unlock, SessionList()))["sessions"] == []
    reply = await login(unlock, PASSWORD)
    assert (reply.result, "frozen" in reply["reason"]) == ("refused", True)
    opened = await ask(unlock, Open(ALICE, PASSWORD, "192.0.2.1"), READER)
    assert opened.result == "temporary-failure"
    for request in (AccountRecover(ALICE, code, NEW), AccountRotate(ALICE, PASSWORD)):
        assert (await ask(unlock, request)).result == "wrong-state"
    assert (await ask(unlock, Lookup(ALICE), DOVECOT)).result == "found"
    assert (await ask(unlock, AccountThaw(ALICE, PASSWORD, "code"))).result == "bad-code"
    assert (await ask(unlock, AccountThaw(ALICE, NEW, "password"))).result == "wrong-secret"
    await done(unlock, AccountThaw(ALICE, code))
    assert (await login(unlock, PASSWORD)).result == "opened"
    everybody = await done(unlock, AccountFreeze())
    assert everybody["accounts"] == 1
    await done(unlock, AccountThaw(ALICE, PASSWORD, "password"))
    assert (await ask(unlock, AccountFreeze(BOB))).result == "wrong-state"


async def test_the_site_says_what_thaws(people: CheapSite, sockets: Path) -> None:
    unlock = site_with(people, sockets, recovery=Recovery(thaw_with=("code",)))
    await done(unlock, AccountFreeze(ALICE))
    assert (await ask(unlock, AccountThaw(ALICE, PASSWORD, "password"))).result == "usage"


# ---- app passwords


async def test_an_app_password_opens_until_it_is_taken_back(unlock: Running) -> None:
    made = await done(unlock, AppPasswordAdd(ALICE, PASSWORD, "phone"))
    phone, handle = str(made["app_password"]), made["handle"]
    assert phone.startswith(f"ap-{handle}-")
    assert await app_login(unlock, phone) == "opened"
    assert await app_login(unlock, "AP-" + phone[3:].upper().replace("-", " ")) == "opened"
    assert await app_login(unlock, phone, service="smtp") == "accepted"
    assert await app_login(unlock, phone, mechanism="CRAM-MD5") == "refused"
    shown = next(
        slot
        for slot in (await ask(unlock, AccountShow(ALICE)))["slots"]
        if slot["kind"] == "app-password"
    )
    assert (shown["label"], len(shown["used"])) == ("phone", len("2026-11-25"))
    assert (await ask(unlock, AppPasswordAdd(ALICE, PASSWORD, "phone"))).result == "wrong-state"
    for suspended, result in ((True, "refused"), (False, "opened")):
        await done(unlock, AccountSuspend(ALICE, suspended))
        assert await app_login(unlock, phone) == result
    removed = await done(unlock, AppPasswordRemove(ALICE, handle))
    assert removed["rekey_due"]
    assert await app_login(unlock, phone) == "wrong-secret"
    assert (await login(unlock, PASSWORD))["keys"] == "2"
    assert not (await ask(unlock, AccountShow(ALICE)))["rekey_due"]
    assert (await ask(unlock, AppPasswordRemove(ALICE, handle))).result == "not-found"
    again = await done(unlock, AppPasswordAdd(ALICE, PASSWORD, "tablet"))
    now = await done(unlock, AppPasswordRemove(ALICE, again["handle"], PASSWORD))
    assert (now["rekey_due"], len(now["key_ids"])) == (False, 3)


@pytest.mark.parametrize("secret", ["ap-", "ap-my own password", "correct horse", "AP-x"])
async def test_what_is_no_app_password_is_left_to_the_site(unlock: Running, secret: str) -> None:
    assert await app_login(unlock, secret) == "not-enrolled"


# ---- admin recovery


async def test_admin_recovery_from_setting_it_to_using_it(unlock: Running) -> None:
    assert (await ask(unlock, AdminSet(WEAK))).result == "usage"
    assert (await done(unlock, AdminSet(ROOT)))["by_key"] == 0
    assert (await ask(unlock, AdminSet(ROOT))).result == "wrong-state"
    # alice was encrypted before, and agrees; bob comes after.
    assert (await ask(unlock, AdminResetPassword(ALICE, ROOT, NEW))).result == "wrong-state"
    shown = await done(unlock, AccountAdmin(ALICE, PASSWORD, wanted=True))
    assert shown["admin_recovery"] == "yes"
    assert (await done(unlock, AccountEnable(BOB, PASSWORD)))["admin_recovery"] == "yes"
    assert (await ask(unlock, AdminStatus()))["by_key"] == 2
    wrong = await ask(unlock, AdminResetPassword(ALICE, ROOT2, NEW))
    assert wrong.result == "wrong-secret"
    await done(unlock, AdminResetPassword(ALICE, ROOT, NEW))
    assert (await login(unlock, NEW)).result == "opened"
    assert (await login(unlock, PASSWORD)).result == "refused"
    exported = await done(unlock, AdminExport(BOB, ROOT, NEWER))
    assert len(exported["keys"]) == 1
    await done(unlock, AdminChange(ROOT, ROOT2))
    assert (await ask(unlock, AdminResetPassword(ALICE, ROOT, PASSWORD))).result == "wrong-secret"
    changed = await done(unlock, AdminChange(ROOT2, ROOT, new_key=True))
    assert (changed["by_key"], changed["by_previous"], changed["rekey_due"]) == (2, 0, 2)
    assert (await login(unlock, NEW))["keys"] == "2"
    refused = await done(unlock, AccountAdmin(BOB, PASSWORD, wanted=False))
    assert (refused["admin_recovery"], len(refused["key_ids"])) == ("refused", 2)
    assert (await ask(unlock, AdminResetPassword(BOB, ROOT, NEW))).result == "wrong-state"
    events = [entry["event"] for entry in (await ask(unlock, AuditList()))["entries"]]
    assert events == [
        "admin-set",
        "admin-reset-password",
        "admin-export",
        "admin-password-changed",
        "admin-key-changed",
    ]


async def test_policies_are_applied_account_by_account(people: CheapSite, sockets: Path) -> None:
    required = site_with(people, sockets, recovery=Recovery(admin="required"))
    await required.parts.admin.apply_policy()
    missing = await ask(required, AccountEnable(BOB, PASSWORD))
    assert (missing.result, "admin-recovery set" in missing["reason"]) == ("wrong-state", True)
    await done(required, AdminSet(ROOT))
    assert (await login(required, PASSWORD)).result == "opened"  # which gives alice a slot
    status = await ask(required, AdminStatus())
    assert (status["policy"], status["by_key"]) == ("required", 1)
    no = await ask(required, AccountAdmin(ALICE, PASSWORD, wanted=False))
    assert no.result == "wrong-state"
    forbidden = site_with(people, sockets, recovery=Recovery(admin="forbidden"))
    await forbidden.parts.admin.apply_policy()
    status = await ask(forbidden, AdminStatus())
    assert (status["policy"], status["by_key"], status["rekey_due"]) == ("forbidden", 0, 1)
    assert (await ask(forbidden, AdminResetPassword(ALICE, ROOT, NEW))).result == "wrong-state"
    assert (await login(forbidden, PASSWORD))["keys"] == "2"
    status = await ask(forbidden, AdminStatus())
    assert (status["rekey_due"], status["older_copies_until"] > 0) == (0, True)
    events = [entry["detail"] for entry in (await ask(forbidden, AuditList()))["entries"]]
    assert sum('"forbidden"' in detail for detail in events) == 1


# ---- enrolment at login


async def test_enrolment_at_login(people: CheapSite, sockets: Path) -> None:
    atrest = AtRest(enrolment="at-login", at_login_confirmations=2)
    unlock = site_with(people, sockets, atrest=atrest)
    for _ in range(3):  # nobody, before there is a way back
        assert (await login(unlock, WEAK, BOB)).result == "not-enrolled"
    await done(unlock, AdminSet(ROOT))
    for request in (
        Login(BOB, "imap", "PLAIN", False, WEAK),
        Login(BOB, "imap", "CRAM-MD5", True, WEAK),
        Login(BOB, "imap", "PLAIN", True, WEAK, master="boss"),
        Login(BOB, "smtp", "PLAIN", True, WEAK),
        Login(BOB, "imap", "PLAIN", True, None),
    ):
        assert (await ask(unlock, request, DOVECOT)).result == "not-enrolled"
    assert (await login(unlock, NEW, BOB)).result == "not-enrolled"
    assert (await login(unlock, WEAK, BOB)).result == "not-enrolled"
    assert (await login(unlock, WEAK, BOB)).result == "opened"
    assert await slots(unlock, BOB) == [("admin", "active"), ("password", "active")]
    dora = "dora@example.org"  # no account yet: made where the configuration says
    assert (await login(unlock, NEW, dora)).result == "not-enrolled"
    assert (await login(unlock, NEW, dora))["keys"] == "1"


async def test_two_logins_at_once_enrol_once(people: CheapSite, sockets: Path) -> None:
    atrest = AtRest(enrolment="at-login", at_login_without_recovery="accepted")
    unlock = site_with(people, sockets, atrest=atrest)
    replies = await asyncio.gather(*(login(unlock, NEW, BOB) for _ in range(2)))
    assert [reply.result for reply in replies] == ["opened", "opened"]
    record = unlock.site.accounts.record(BOB)
    assert record is not None
    assert (record.epoch, len(record.key_ids)) == (2, 1)


async def test_trouble_at_enrolment_changes_nothing(
    people: CheapSite, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's directory does not answer in time, or not at all: the site's answer stands."""
    atrest = AtRest(enrolment="at-login", at_login_without_recovery="accepted")

    async def stuck(_administration: object, _name: str) -> None:
        await asyncio.sleep(60)

    async def away(_administration: object, _name: str) -> None:
        raise TemporaryFailure

    monkeypatch.setattr(enrolment, "SECONDS", 0.05)
    for trouble in (stuck, away):
        monkeypatch.setattr(Administration, "add_found", trouble)
        unlock = site_with(people, sockets, atrest=atrest)
        assert (await login(unlock, NEW, "dora@example.org")).result == "not-enrolled"
        assert unlock.site.accounts.record("dora@example.org") is None
