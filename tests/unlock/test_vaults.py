from dataclasses import replace

import pytest

from lmtp_atrest.crypto.records import AccountRecord, State
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.vaults import (
    TOKENS_LIMIT,
    WRONG_SECONDS,
    NoSession,
    OpenVault,
    OpenVaults,
    Recogniser,
    WrongSecrets,
)

RECORD = AccountRecord(
    site_id="s",
    account_id="a" * 32,
    epoch=3,
    created=0,
    names=("alice@example.org",),
    home="/h",
    maildir="/h/Maildir",
    state=State.ENCRYPTED,
    vault_id="v",
)


@pytest.fixture
def vaults() -> OpenVaults:
    return OpenVaults(idle_seconds=60, age_seconds=100)


def put(vaults: OpenVaults, now: float = 0.0) -> OpenVault:
    return vaults.put(RECORD, VaultKey.generate(), b"mark", "192.0.2.1", now)


def test_a_vault_ends_by_idle_time_unless_used(vaults: OpenVaults) -> None:
    vault = put(vaults)
    vaults.use(vault, 50)
    assert vaults.current(RECORD, 109) is None
    assert len(vaults) == 0


def test_a_vault_ends_by_age_however_much_it_is_used(vaults: OpenVaults) -> None:
    vault = put(vaults)
    for now in range(0, 100, 10):
        assert vaults.current(RECORD, now) is vault
        vaults.use(vault, now)
    assert vaults.expires(vault, 90) == 10
    assert vaults.expire(100) == [vault]


@pytest.mark.parametrize(
    "changed",
    [{"epoch": 4}, {"epoch": 2}, {"state": State.PLAIN}, {"state": State.REMOVED}],
    ids=str,
)
def test_a_changed_record_closes_the_vault(vaults: OpenVaults, changed: dict[str, object]) -> None:
    vault = put(vaults)
    token = vaults.issue(vault, 1000)
    assert vaults.current(replace(RECORD, **changed), 1) is None  # type: ignore[arg-type]
    with pytest.raises(NoSession):
        vaults.by_token(token, 1000, 1)


def test_leaving_keeps_the_vault(vaults: OpenVaults) -> None:
    vault = put(vaults)
    assert vaults.current(replace(RECORD, state=State.LEAVING), 1) is vault


def test_a_token_is_good_for_its_uid_only_and_says_nothing_else(vaults: OpenVaults) -> None:
    token = vaults.issue(put(vaults), 1000)
    assert vaults.by_token(token, 1000, 1).account_id == RECORD.account_id
    messages = set()
    for wrong, uid in ((token, 0), (token, 1001), (token + "x", 1000), ("", 1000)):
        with pytest.raises(NoSession) as caught:
            vaults.by_token(wrong, uid, 1)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_closing_forgets_key_tokens_and_marks(vaults: OpenVaults) -> None:
    vault = put(vaults)
    token = vaults.issue(vault, 1000)
    assert vaults.close(RECORD.account_id) == 1
    assert vaults.close(RECORD.account_id) == 0
    assert not vault.vault_key
    assert not vault.recognises(b"mark")
    with pytest.raises(NoSession):
        vaults.by_token(token, 1000, 1)


def test_an_expired_token_closes_its_vault(vaults: OpenVaults) -> None:
    token = vaults.issue(put(vaults), 1000)
    with pytest.raises(NoSession):
        vaults.by_token(token, 1000, 60)
    assert len(vaults) == 0


def test_the_oldest_of_too_many_tokens_goes(vaults: OpenVaults) -> None:
    vault = put(vaults)
    tokens = [vaults.issue(vault, 1000) for _ in range(TOKENS_LIMIT + 1)]
    with pytest.raises(NoSession):
        vaults.by_token(tokens[0], 1000, 1)
    assert vaults.by_token(tokens[1], 1000, 1) is vault


def test_wipe_leaves_nothing(vaults: OpenVaults) -> None:
    vault = put(vaults)
    assert vaults.wipe() == 1
    assert not vault.vault_key


def test_two_secrets_that_open_one_vault_are_both_recognised(vaults: OpenVaults) -> None:
    first = put(vaults)
    second = vaults.put(RECORD, VaultKey.generate(), b"other", "192.0.2.2", 1)
    assert first is second
    assert second.recognises(b"mark")
    assert second.recognises(b"other")


def test_a_mark_belongs_to_one_secret_of_one_state_in_one_process() -> None:
    recogniser = Recogniser()
    marks = {
        recogniser.mark(RECORD, Secret(b"x")),
        recogniser.mark(RECORD, Secret(b"y")),
        recogniser.mark(replace(RECORD, epoch=4), Secret(b"x")),
        recogniser.mark(replace(RECORD, slots_digest=b"d"), Secret(b"x")),
        recogniser.mark(replace(RECORD, account_id="b" * 32), Secret(b"x")),
        Recogniser().mark(RECORD, Secret(b"x")),
    }
    assert len(marks) == 6
    assert recogniser.mark(RECORD, Secret(b"x")) in marks


def test_wrong_secrets_are_forgotten_after_minutes() -> None:
    wrong = WrongSecrets()
    wrong.add(b"mark", 0)
    assert wrong.knows(b"mark", WRONG_SECONDS - 1)
    assert not wrong.knows(b"mark", WRONG_SECONDS)
    assert not wrong.knows(b"other", 0)
