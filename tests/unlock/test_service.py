import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lmtp_atrest.accounts import Generations, handout
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve, PublicKey
from lmtp_atrest.errors import (
    Alarm,
    Busy,
    Conflict,
    Damaged,
    NotFound,
    TemporaryFailure,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock import service as service_module
from lmtp_atrest.unlock.opening import KdfPool
from lmtp_atrest.unlock.protocol import Peer, Reply, encode_reply
from lmtp_atrest.unlock.requests import (
    AccountAdd,
    AccountAlias,
    AccountEnable,
    AccountList,
    AccountRemove,
    AccountRename,
    AccountShow,
    AppLogin,
    Keys,
    Lock,
    Login,
    Lookup,
    Open,
    Renew,
    Request,
    Role,
    SessionList,
    SessionLock,
    Status,
    Unwrap,
)
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, BOB, PASSWORD
from tests.unlock.running import Running, running

DOVECOT, READER, ADMIN = (Peer(role, 1000) for role in (Role.DOVECOT, Role.READER, Role.ADMIN))
WRONG = Secret(b"canary-wrong")


def login(**changes: Any) -> Login:
    fields: dict[str, Any] = {
        "name": ALICE,
        "service": "imap",
        "mechanism": "PLAIN",
        "site_verified": True,
        "secret": PASSWORD,
        "source": "192.0.2.1",
        **changes,
    }
    return Login(**fields)


async def ask(unlock: Running, request: Request, peer: Peer = DOVECOT) -> Reply:
    reply = await unlock.service.answer(request, peer)
    encode_reply(reply, peer.role)
    return reply


async def opened(unlock: Running, source: str = "192.0.2.1") -> Reply:
    reply = await ask(unlock, Open(ALICE, PASSWORD, source), READER)
    assert reply.result == "opened"
    return reply


def private_key(reply: Reply, number: int = 1) -> PrivateKey:
    pem = base64.b64decode(reply[f"private_key{number}"])
    assert b"ENCRYPTED PRIVATE KEY" in pem
    return PrivateKey.from_pem(pem, Secret(reply[f"password{number}"].encode()))


# ---- login


async def test_a_login_carries_the_private_keys_newest_first(unlock: Running) -> None:
    accounts = unlock.site.accounts
    record = accounts.record(ALICE)
    assert record is not None
    Generations(accounts).rekey(record, accounts.open(record, PASSWORD).vault_key)
    reply = await ask(unlock, login())
    assert (reply.result, reply["keys"], reply["state"]) == ("opened", "2", "encrypted")
    after = accounts.record(ALICE)
    assert after is not None
    assert [private_key(reply, n).key_id.hex() for n in (1, 2)] == list(after.key_ids)
    public = PublicKey.from_pem(base64.b64decode(reply["public_key"]))
    assert public.spki == after.public_key
    assert reply["cache_dir"] == f"/dev/shm/lmtp-atrest/{after.account_id}"
    again = await ask(unlock, login())
    assert again["password1"] != reply["password1"]


@pytest.mark.parametrize("name", ["ALICE@Example.ORG", ALICE])
async def test_every_spelling_of_a_name_is_the_account(unlock: Running, name: str) -> None:
    assert (await ask(unlock, login(name=name))).result == "opened"


@pytest.mark.parametrize("service", ["imap", "pop3"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "plain"])
async def test_keys_leave_for_imap_and_pop3_with_a_plain_password(
    unlock: Running, service: str, mechanism: str
) -> None:
    assert (await ask(unlock, login(service=service, mechanism=mechanism))).result == "opened"


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"service": "smtp"}, "no-keys"),
        ({"service": "submission"}, "no-keys"),
        ({"service": "sieve"}, "no-keys"),
        ({"service": "lmtp"}, "no-keys"),
        ({"service": ""}, "no-keys"),
        ({"service": "smtp", "site_verified": False}, "no-keys"),
        ({"master": "boss"}, "refused"),
        ({"site_verified": False}, "refused"),
        ({"mechanism": "CRAM-MD5"}, "refused"),
        ({"mechanism": "SCRAM-SHA-256"}, "refused"),
        ({"mechanism": "XOAUTH2"}, "refused"),
        ({"mechanism": "OAUTHBEARER"}, "refused"),
        ({"mechanism": "GSSAPI"}, "refused"),
        ({"mechanism": ""}, "refused"),
        ({"secret": None}, "refused"),
        ({"secret": Secret(b"")}, "refused"),
        ({"secret": WRONG}, "refused"),
        ({"name": BOB}, "not-enrolled"),
        ({"name": "nobody@example.org"}, "not-enrolled"),
        ({"name": "../../etc"}, "not-enrolled"),
        ({"name": "\udcff"}, "not-enrolled"),
        ({"name": ""}, "not-enrolled"),
        ({"name": BOB, "master": "boss"}, "not-enrolled"),
    ],
)
async def test_every_other_login_goes_without_keys(
    unlock: Running, changes: dict[str, Any], result: str
) -> None:
    reply = await ask(unlock, login(**changes))
    assert reply.result == result
    assert not any(field.startswith(("private_key", "password")) for field in reply.fields)
    assert bool(reply.get("reason")) is (result == "refused")


async def test_refusals_other_than_a_mismatch_cost_no_argon2(unlock: Running) -> None:
    for changes in ({"master": "boss"}, {"mechanism": "XOAUTH2"}, {"site_verified": False}):
        await ask(unlock, login(**changes))
    assert unlock.service.pool.runs == 0


async def test_a_mismatch_may_let_the_user_in_with_old_mail_closed(
    people: CheapSite, sockets: Path
) -> None:
    async with running(people, sockets, on_mismatch="let-in-closed") as unlock:
        reply = await ask(unlock, login(secret=WRONG))
        assert (reply.result, reply["keys"]) == ("closed", "0")
        assert reply["public_key"]
        assert "private_key1" not in reply.fields


async def test_without_a_ram_cache_no_directory_is_named(people: CheapSite, sockets: Path) -> None:
    async with running(people, sockets, cache="none") as unlock:
        reply = await ask(unlock, login())
        assert reply["cache"] == "none"
        assert reply.get("cache_dir") is None


async def test_verified_logins_are_no_guesses_and_are_never_slowed(unlock: Running) -> None:
    for number in range(5):
        reply = await ask(unlock, login(secret=Secret(b"wrong %d" % number)))
        assert reply.result == "refused"
    assert (await ask(unlock, login())).result == "opened"
    await opened(unlock)


async def test_a_login_with_more_keys_than_a_worker_reply_holds_is_refused(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handout, "WORKER_REPLY_BYTES", 900)
    with capture_logs() as logs:
        reply = await ask(unlock, login())
    assert (reply.result, reply["reason"]) == ("refused", service_module.REFUSED_TOO_MANY_KEYS)
    assert any("keys take" in str(entry.get("cause")) for entry in logs)


@pytest.mark.parametrize(("curve", "most"), [(Curve.PRIME256V1, 11), (Curve.SECP521R1, 8)])
async def test_as_many_keys_fit_as_dovecot_was_measured_to_take(curve: Curve, most: int) -> None:
    pem, password = handout.one_time(PrivateKey.generate(curve))
    each = len(pem) + len(password) + handout.KEY_FIELD_OVERHEAD
    room = handout.WORKER_REPLY_BYTES - handout.WORKER_REPLY_OVERHEAD
    assert room // each == most


async def test_lookup_tells_the_public_half(unlock: Running) -> None:
    reply = await ask(unlock, Lookup(ALICE))
    assert (reply.result, reply["state"]) == ("found", "encrypted")
    assert "private_key1" not in reply.fields
    assert (await ask(unlock, Lookup(BOB))).result == "not-enrolled"
    assert (await ask(unlock, AppLogin(ALICE, Secret(b"ap-x")))).result == "not-enrolled"


# ---- Argon2id, once


async def test_a_second_login_costs_no_argon2(unlock: Running) -> None:
    await ask(unlock, login())
    await ask(unlock, login(source="192.0.2.9"))
    await opened(unlock)
    assert unlock.service.pool.runs == 1


async def test_logins_side_by_side_with_one_secret_cost_one_argon2(unlock: Running) -> None:
    replies = await asyncio.gather(*(ask(unlock, login()) for _ in range(8)))
    assert {reply.result for reply in replies} == {"opened"}
    assert unlock.service.pool.runs == 1


async def test_a_wrong_secret_is_answered_from_memory_for_minutes(unlock: Running) -> None:
    for _ in range(3):
        assert (await ask(unlock, login(secret=WRONG))).result == "refused"
        reply = await ask(unlock, Open(ALICE, WRONG, "192.0.2.7"), READER)
        assert reply.result == "wrong-secret"
    assert unlock.service.pool.runs == 1
    unlock.clock.seconds += 601
    await ask(unlock, login(secret=WRONG))
    assert unlock.service.pool.runs == 2


async def test_a_full_queue_is_busy_at_once(people: CheapSite, sockets: Path) -> None:
    async with running(people, sockets) as unlock:
        pool = unlock.service.pool
        release = threading.Event()
        small = KdfPool(width=1, waiting_per_core=1)
        unlock.service.pool = unlock.service.opener._pool = small
        held = [asyncio.create_task(small.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (await ask(unlock, login())).result == "busy"
        for source in ("192.0.2.1", "192.0.2.1"):
            reply = await ask(unlock, Open(ALICE, PASSWORD, source), READER)
            assert (reply.result, reply["retry_after"]) == ("busy", 2.0)
        release.set()
        await asyncio.gather(*held)
        # A full queue counted nothing against the source.
        await opened(unlock)
        pool.close()


# ---- guessing


async def test_guesses_from_one_source_are_busy_without_argon2(unlock: Running) -> None:
    for secret in (b"one", b"two", b"three"):
        reply = await ask(unlock, Open(ALICE, Secret(secret), "a"), READER)
        assert reply.result == "wrong-secret"
    reply = await ask(unlock, Open(ALICE, Secret(b"four"), "a"), READER)
    assert (reply.result, reply["retry_after"]) == ("busy", 1.0)
    assert unlock.service.pool.runs == 3
    await opened(unlock, source="b")
    unlock.clock.seconds += 1
    await opened(unlock, source="a")


async def test_an_open_vault_answers_the_right_secret_while_strangers_guess(
    unlock: Running,
) -> None:
    await ask(unlock, login(source="home"))
    for number in range(120):
        await ask(unlock, Open(ALICE, Secret(b"guess %d" % number), f"s{number}"), READER)
    assert unlock.service.pool.runs <= 51
    await opened(unlock, source="a device never seen")
    unlock.service.vaults.wipe()
    await opened(unlock, source="home")


@pytest.mark.parametrize("name", [BOB, "nobody@example.org", "../../etc", "\udcff"])
async def test_names_without_a_vault_look_like_a_wrong_secret(unlock: Running, name: str) -> None:
    results = []
    for secret in (WRONG, WRONG, Secret(b"2"), Secret(b"3"), Secret(b"4")):
        known = await ask(unlock, Open(ALICE, secret, "a"), READER)
        unknown = await ask(unlock, Open(name, secret, "a"), READER)
        results.append((known.result, dict(known.fields)))
        assert results[-1] == (unknown.result, dict(unknown.fields))
    assert [result for result, _ in results] == ["wrong-secret"] * 4 + ["busy"]
    assert unlock.service.pool.runs == 6


async def test_an_administrator_hears_that_an_account_is_plain(unlock: Running) -> None:
    reply = await ask(unlock, Open(BOB, PASSWORD, "cli"), ADMIN)
    assert reply.result == "not-enrolled"


# ---- reader


async def test_a_reader_gets_keys_that_open_mail(unlock: Running) -> None:
    token = (await opened(unlock))["token"]
    keys = (await ask(unlock, Keys(token), READER))["keys"]
    key = PrivateKey.from_pem(
        base64.b64decode(keys[0]["private_key"]), Secret(keys[0]["password"].encode())
    )
    sealed = dcrypt.seal(key.public, b"Subject: hello\n")
    assert keys[0]["key_id"] == key.key_id.hex()
    assert dcrypt.open_bytes(sealed, lambda header: dcrypt.unwrap(header, key)) == (
        b"Subject: hello\n"
    )


async def test_unwrap_gives_one_message_key_and_tells_faults_apart(unlock: Running) -> None:
    reply = await opened(unlock)
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    sealed = dcrypt.seal(PublicKey.from_der(record.public_key), b"x")
    header = dcrypt.parse_header(sealed).raw
    unwrapped = await ask(unlock, Unwrap(reply["token"], header), READER)
    assert len(base64.b64decode(unwrapped["key"])) == 60
    foreign = dcrypt.parse_header(
        dcrypt.seal(PrivateKey.generate(Curve.PRIME256V1).public, b"x")
    ).raw
    damaged = header[:-5] + bytes([header[-5] ^ 1]) + header[-4:]
    for raw, result in (
        (foreign, "no-such-key"),
        (damaged, "damaged"),
        (b"", "damaged"),
        (header[:60], "damaged"),
        (b"\0" * 40_000, "damaged"),
    ):
        assert (await ask(unlock, Unwrap(reply["token"], raw), READER)).result == result


async def test_a_token_of_another_uid_is_no_session(unlock: Running) -> None:
    token = (await opened(unlock))["token"]
    for request in (Keys(token), Unwrap(token, b""), Renew(token), Lock(token)):
        reply = await ask(unlock, request, Peer(Role.READER, 1001))
        assert reply == Reply("no-such-session")
    assert (await ask(unlock, Renew(token), READER)).result == "renewed"


async def test_renew_keeps_a_vault_up_to_its_age(unlock: Running) -> None:
    token = (await opened(unlock))["token"]
    lived = 0
    while (reply := await ask(unlock, Renew(token), READER)).result == "renewed":
        assert reply["expires"] <= 1800
        unlock.clock.seconds += 1700
        lived += 1700
    assert 12 * 3600 <= lived < 12 * 3600 + 1700
    assert reply.result == "no-such-session"


async def test_a_vault_that_nobody_uses_is_closed_in_time(unlock: Running) -> None:
    await ask(unlock, login())
    unlock.clock.seconds += 1800
    await unlock.service.expire()
    assert len(unlock.service.vaults) == 0


@pytest.mark.parametrize("change", ["rename", "rekey", "remove"])
async def test_a_changed_account_closes_the_vault_at_its_next_use(
    unlock: Running, change: str
) -> None:
    token = (await opened(unlock))["token"]
    accounts = unlock.site.accounts
    record = accounts.record(ALICE)
    assert record is not None
    if change == "rename":
        accounts.rename(ALICE, "alina@example.org")
    elif change == "rekey":
        Generations(accounts).rekey(record, accounts.open(record, PASSWORD).vault_key)
    else:
        accounts.remove(ALICE)
    assert (await ask(unlock, Keys(token), READER)).result == "no-such-session"
    assert len(unlock.service.vaults) == 0


async def test_a_change_while_argon2_runs_opens_nothing(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = unlock.site.accounts
    open_slot = accounts.open

    def slow(*arguments: Any) -> Any:
        key = open_slot(*arguments)
        accounts.alias_add(ALICE, "a@example.org")
        return key

    monkeypatch.setattr(accounts, "open", slow)
    assert (await ask(unlock, login())).result == "temporary-failure"
    assert len(unlock.service.vaults) == 0


async def test_lock_ends_the_vault_for_all_its_tokens(unlock: Running) -> None:
    first, second = [(await opened(unlock))["token"] for _ in range(2)]
    reply = await ask(unlock, Lock(first), READER)
    assert dict(reply.fields) == {"vaults": 1, "readers_remaining": "unknown"}
    assert (await ask(unlock, Keys(second), READER)).result == "no-such-session"
    await ask(unlock, login())
    assert unlock.service.pool.runs == 2


# ---- admin


async def test_an_account_is_added_enabled_shown_and_removed(unlock: Running) -> None:
    added = await ask(unlock, AccountAdd("Carol@Example.org"), ADMIN)
    assert (added.result, added["state"]) == ("added", "plain")
    assert added["maildir"] == added["home"] + "/Maildir"
    enabled = await ask(unlock, AccountEnable("carol@example.org", PASSWORD), ADMIN)
    assert (enabled.result, enabled["readers_remaining"]) == ("enabled", "unknown")
    assert (await ask(unlock, login(name="carol@example.org"))).result == "opened"
    shown = await ask(unlock, AccountShow("carol@example.org"), ADMIN)
    assert sorted(slot["kind"] for slot in shown["slots"]) == ["password", "recovery-code"]
    listed = await ask(unlock, AccountList(), ADMIN)
    assert [account["names"][0] for account in listed["accounts"]] == [
        ALICE,
        BOB,
        "carol@example.org",
    ]
    assert (await ask(unlock, AccountRemove("carol@example.org"), ADMIN)).result == "removed"
    assert len(unlock.service.vaults) == 0
    assert (await ask(unlock, login(name="carol@example.org"))).result == "not-enrolled"


async def test_names_come_and_go(unlock: Running) -> None:
    renamed = await ask(unlock, AccountRename(ALICE, "alina@example.org"), ADMIN)
    assert renamed["names"] == ["alina@example.org"]
    aliased = await ask(unlock, AccountAlias("alina@example.org", "A.L@example.org"), ADMIN)
    assert aliased["names"] == ["alina@example.org", "a.l@example.org"]
    assert (await ask(unlock, login(name="a.l@example.org"))).result == "opened"
    gone = await ask(
        unlock, AccountAlias("alina@example.org", "a.l@example.org", remove=True), ADMIN
    )
    assert gone["names"] == ["alina@example.org"]


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (AccountShow("nobody@example.org"), "not-found"),
        (SessionLock("nobody@example.org"), "not-found"),
        (AccountAdd(ALICE), "conflict"),
        (AccountRename(BOB, ALICE), "conflict"),
        (AccountEnable(ALICE, PASSWORD), "wrong-state"),
        (AccountEnable(BOB, Secret(b"")), "usage"),
        (AccountAdd("a b\0@example.org"), "invalid-name"),
        (AccountAdd("\udcff"), "usage"),
        (AccountAdd(".hidden"), "usage"),
    ],
)
async def test_what_cannot_be_done_says_why(
    unlock: Running, request_: Request, result: str
) -> None:
    reply = await ask(unlock, request_, ADMIN)
    assert reply.result == result
    assert reply["reason"]


async def test_sessions_are_listed_and_locked_by_name(unlock: Running) -> None:
    await ask(unlock, login())
    unlock.clock.seconds += 5
    listed = (await ask(unlock, SessionList(), ADMIN))["sessions"]
    assert [(s["name"], s["source"], s["open_seconds"]) for s in listed] == [
        (ALICE, "192.0.2.1", 5)
    ]
    locked = await ask(unlock, SessionLock(ALICE), ADMIN)
    assert dict(locked.fields) == {"vaults": 1, "readers_remaining": "unknown"}
    assert (await ask(unlock, SessionList(), ADMIN))["sessions"] == []
    status = await ask(unlock, Status(), ADMIN)
    assert (status["open_vaults"], status["evict"]) == (0, False)


async def test_enable_answers_after_the_barrier(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    enable, sleep = unlock.site.accounts.enable, asyncio.sleep

    async def barrier(seconds: float) -> None:
        order.append(f"slept {seconds}")
        await sleep(0)

    async def end(_names: tuple[str, ...], _account: str) -> int:
        order.append("ended readers")
        return 0

    def enabled(*arguments: Any) -> Any:
        record = enable(*arguments)
        order.append("committed")
        return record

    monkeypatch.setattr(unlock.site.accounts, "enable", enabled)
    monkeypatch.setattr(unlock.service.evictor, "end", end)
    monkeypatch.setattr(asyncio, "sleep", barrier)
    await ask(unlock, AccountEnable(BOB, PASSWORD), ADMIN)
    assert order == ["committed", "slept 0.01", "ended readers"]


# ---- failures


@pytest.mark.parametrize(
    ("error", "dovecot", "reader", "admin"),
    [
        (Alarm("canary"), "temporary-failure", "temporary-failure", "alarm"),
        (Damaged("canary"), "temporary-failure", "temporary-failure", "damaged"),
        (TemporaryFailure("canary"), "temporary-failure", "temporary-failure", None),
        (Conflict("canary"), "temporary-failure", "temporary-failure", "conflict"),
        (NotFound("canary"), "temporary-failure", "temporary-failure", "not-found"),
        (WrongState("canary"), "temporary-failure", "temporary-failure", "wrong-state"),
        (UsageError("canary"), "temporary-failure", "temporary-failure", "usage"),
        (WrongSecret("canary"), "wrong-secret", "wrong-secret", "wrong-secret"),
        (Busy("canary", 3), "busy", "busy", "busy"),
        (RuntimeError("canary"), "temporary-failure", "temporary-failure", "temporary-failure"),
        (MemoryError(), "temporary-failure", "temporary-failure", "temporary-failure"),
    ],
)
async def test_every_error_has_one_word_and_only_administrators_hear_its_text(
    unlock: Running,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    dovecot: str,
    reader: str,
    admin: str | None,
) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(unlock.site.accounts, "record", fail)
    for peer, result in ((DOVECOT, dovecot), (READER, reader)):
        request = Lookup(ALICE) if peer is DOVECOT else Open(ALICE, WRONG, "")
        reply = await ask(unlock, request, peer)
        assert reply.result == result
        assert "canary" not in str(reply.fields)
    reply = await ask(unlock, Lookup(ALICE), ADMIN)
    assert reply.result == (admin or "temporary-failure")
    assert ("canary" in reply.get("reason", "")) is not isinstance(
        error, RuntimeError | MemoryError
    )


async def test_alarms_and_surprises_are_logged_without_values(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        message = "canary"
        raise ValueError(message)

    monkeypatch.setattr(unlock.site.accounts, "private_keys", fail)
    with capture_logs() as logs:
        assert (await ask(unlock, login())).result == "temporary-failure"
    assert logs[-1]["error"] == "ValueError"
    assert "canary" not in str(logs)


async def test_a_key_that_the_record_does_not_name_never_leaves(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        message = "private keys are not those of the record"
        raise Alarm(message)

    monkeypatch.setattr(unlock.site.accounts, "private_keys", fail)
    with capture_logs() as logs:
        assert await ask(unlock, login()) == Reply("temporary-failure")
    assert [entry["alarm"] for entry in logs if entry["log_level"] == "critical"] == [True]
