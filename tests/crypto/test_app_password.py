import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.crypto import app_password
from lmtp_atrest.crypto.app_password import AppPassword
from lmtp_atrest.errors import BadCode
from lmtp_atrest.secret import Secret

PINNED = AppPassword("k3m9", Secret(b"0123456789ABCDEFGHJKMNPQRS"))
WRITTEN = "ap-k3m9-0123-4567-89ab-cdef-ghjk-mnpq-rsv3"


def test_the_written_form_is_pinned() -> None:
    assert PINNED.written() == WRITTEN
    assert app_password.read(WRITTEN) == PINNED


def test_a_new_one_has_a_handle_and_128_random_bits_and_shows_no_secret() -> None:
    made = [app_password.generate() for _ in range(50)]
    assert all(re.fullmatch("[0-9a-hjkmnp-tv-z]{4}", one.handle) for one in made)
    assert all(re.fullmatch(b"[0-9A-HJKMNP-TV-Z]{26}", one.secret.reveal()) for one in made)
    assert len({one.secret.reveal() for one in made}) == 50
    assert repr(PINNED) == "AppPassword(handle='k3m9', secret=Secret(…))"


@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("separator", ["", "-", " ", "\u2011"])
def test_it_is_read_however_it_was_typed(case: Callable[[str], str], separator: str) -> None:
    made = app_password.generate()
    typed = case("ap-" + made.written()[3:].replace("-", separator))
    assert app_password.is_app_password(typed.encode())
    assert app_password.read(typed) == app_password.read(typed.encode()) == made


BAD = {
    "another handle": WRITTEN.replace("k3m9", "k3m8"),
    "a character of the secret": WRITTEN.replace("0123", "0124"),
    "neighbours across a dash": WRITTEN.replace("m9-01", "m0-91"),
    "too short": WRITTEN[:-1],
    "the check left out": WRITTEN[:-2],
    "a letter that none has": WRITTEN.replace("a", "u").replace("up-", "ap-"),
    "no prefix": WRITTEN[3:],
    "a recovery code": "0123-4567-89AB-CDEF-GHJK-MNPQ-RSCT",
    "somebody's own password": "ap-ple pie",
    "the prefix alone": "ap-",
    "nothing": "",
}


@pytest.mark.parametrize("typed", BAD.values(), ids=BAD.keys())
def test_what_is_none_is_refused_without_a_word_about_it(typed: str) -> None:
    with pytest.raises(BadCode) as refused:
        app_password.read(typed)
    assert str(refused.value) == (
        "not an app password, or one with a typo: copy it again, or make a new one"
    )
    assert refused.value.__suppress_context__


@given(st.binary() | st.binary().map(lambda rest: b"ap-" + rest))
def test_bytes_of_any_kind_are_a_bad_code_and_no_other_error(typed: bytes) -> None:
    assert app_password.is_app_password(typed) == typed.lower().startswith(b"ap-")
    with pytest.raises(BadCode):
        app_password.read(typed)
