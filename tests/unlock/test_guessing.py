import pytest

from lmtp_atrest.errors import Busy
from lmtp_atrest.unlock.guessing import FORGET_SECONDS, HOUR, Guessing

WEBMAIL = "192.0.2.80"


def wait_for(guessing: Guessing, source: str, now: float) -> float:
    try:
        guessing.check_source("alice", source, now)
    except Busy as busy:
        return busy.retry_after
    return 0.0


def wrong(guessing: Guessing, source: str, now: float) -> bool:
    """Try a wrong secret; whether Argon2id would have run."""
    try:
        guessing.check_source("alice", source, now)
        guessing.begin("alice", source, now)
    except Busy:
        return False
    return True


def test_two_typos_are_free_then_the_gap_of_a_source_grows_to_fifteen_seconds() -> None:
    guessing = Guessing()
    gaps, now = [], 0.0
    for _ in range(9):
        guessing.begin("alice", "198.51.100.1", now)
        gaps.append(wait_for(guessing, "198.51.100.1", now))
        now += gaps[-1]
        assert wait_for(guessing, "198.51.100.1", now) == 0.0
    assert gaps == [0, 0, 1, 2, 4, 8, 15, 15, 15]


def test_asking_too_early_does_not_lengthen_the_gap() -> None:
    guessing = Guessing()
    for _ in range(3):
        guessing.begin("alice", "198.51.100.1", 0.0)
    assert [wait_for(guessing, "198.51.100.1", t) for t in (0.0, 0.5, 0.75)] == [1.0, 0.5, 0.25]


def test_a_source_slows_neither_another_source_nor_another_account() -> None:
    guessing = Guessing()
    for _ in range(9):
        guessing.begin("alice", "198.51.100.1", 0.0)
    assert wait_for(guessing, "198.51.100.2", 0.0) == 0.0
    guessing.check_source("bob", "198.51.100.1", 0.0)


def test_errors_are_forgotten_after_success_or_a_quarter_of_an_hour() -> None:
    guessing = Guessing()
    for _ in range(3):
        guessing.begin("alice", "198.51.100.1", 0.0)
    assert wait_for(guessing, "198.51.100.1", 0.0)
    guessing.succeeded("alice", "198.51.100.1")
    assert wait_for(guessing, "198.51.100.1", 0.0) == 0.0
    for _ in range(9):
        guessing.begin("alice", "198.51.100.1", 0.0)
    guessing.begin("alice", "198.51.100.1", FORGET_SECONDS + 1)
    assert wait_for(guessing, "198.51.100.1", FORGET_SECONDS + 1) == 0.0


def test_ten_thousand_sources_reach_argon2_a_hundred_times_an_hour_at_most() -> None:
    guessing = Guessing([WEBMAIL])
    reached = [
        tick
        for tick in range(40_000)
        if wrong(guessing, WEBMAIL if tick % 4 == 0 else f"source-{tick % 9999}", tick * 0.25)
    ]
    worst = max(
        sum(start <= tick * 0.25 < start + HOUR for tick in reached)
        for start in range(0, 7000, 60)
    )
    assert 80 <= worst <= 100


def test_a_source_that_opened_the_account_before_is_not_shut_out_by_strangers() -> None:
    guessing = Guessing()
    guessing.succeeded("alice", "home", counted=False)
    while wrong(guessing, f"stranger {len(guessing._sources)}", 0.0):
        pass
    assert not wrong(guessing, "another", 0.0)
    assert wrong(guessing, "home", 0.0)


def test_strangers_and_the_webmail_host_have_shares_of_their_own() -> None:
    guessing = Guessing([WEBMAIL])
    while wrong(guessing, f"stranger {len(guessing._sources)}", 0.0):
        pass
    assert wrong(guessing, WEBMAIL, 0.0)


def test_one_typo_at_the_webmail_host_costs_a_second_and_no_success_frees_it_from_its_share() -> (
    None
):
    guessing = Guessing([WEBMAIL])
    guessing.succeeded("alice", WEBMAIL, counted=False)
    tries = [wrong(guessing, WEBMAIL, second * 1.0) for second in range(60)]
    assert sum(tries) == 20
    assert wait_for(guessing, WEBMAIL, 59.0) == 1.0


def test_a_try_that_did_not_run_or_was_right_is_given_back() -> None:
    guessing = Guessing()
    for number in range(500):
        guessing.begin("alice", f"source {number}", 0.0)
        if number % 2:
            guessing.withdraw("alice", f"source {number}")
        else:
            guessing.succeeded("alice", f"source {number}")
    assert wait_for(guessing, "source 1", 0.0) == 0.0


def test_busy_says_when_the_next_try_counts() -> None:
    guessing = Guessing()
    for number in range(30):
        guessing.begin("alice", f"source {number}", 0.0)
    with pytest.raises(Busy) as caught:
        guessing.begin("alice", "late", 0.0)
    assert caught.value.retry_after == pytest.approx(120)
    guessing.begin("alice", "later", 120.0)
