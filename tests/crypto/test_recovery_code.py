import re
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.crypto.checked import ALPHABET
from lmtp_atrest.errors import BadCode
from lmtp_atrest.secret import Secret

SECRET = Secret(b"0123456789ABCDEFGHJKMNPQRS")
WRITTEN = "0123-4567-89AB-CDEF-GHJK-MNPQ-RSCT"
SEPARATORS = [
    "",
    " ",
    "-",
    " - ",
    "\t",
    "\u2013",
    "\u2011",
    "\u00a0",
    "\u00ad",
    "\u200b",
    "\ufeff",
]
LOOK_ALIKES = {"1": "1IilL", "0": "0Oo"}


@st.composite
def ways_to_type(draw: st.DrawFn, code: str) -> str:
    typed = ""
    for character in code.replace("-", ""):
        looks = LOOK_ALIKES.get(character, character + character.lower())
        typed += draw(st.sampled_from(SEPARATORS)) + draw(st.sampled_from(looks))
    return typed + draw(st.sampled_from([*SEPARATORS, "\r\n"]))


# Codes lie in drawers for years: what is written today is read by every later version.
@pytest.mark.parametrize(
    ("secret", "written"),
    [
        (SECRET, WRITTEN),
        (Secret(b"0" * 26), "0000-0000-0000-0000-0000-0000-0000"),
        (Secret(b"0" * 25 + b"1"), "0000-0000-0000-0000-0000-0000-0168"),
        (Secret(b"Z" * 26), "ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZ19"),
    ],
)
def test_the_written_form_is_pinned(secret: Secret, written: str) -> None:
    assert recovery_code.written(secret) == written
    assert recovery_code.read(written) == secret
    assert recovery_code.read(written.encode()) == secret


def test_a_new_code_has_at_least_128_random_bits_and_is_never_the_same() -> None:
    codes = [recovery_code.generate() for _ in range(50)]
    assert all(re.fullmatch(rb"[0-9A-HJKMNP-TV-Z]{26}", code.reveal()) for code in codes)
    assert log2(32) * len(codes[0]) >= 128
    assert len({code.reveal() for code in codes}) == 50


@given(st.data(), st.text(ALPHABET, min_size=26, max_size=26))
def test_it_is_read_however_it_was_typed(data: st.DataObject, text: str) -> None:
    secret = Secret(text.encode())
    typed = data.draw(ways_to_type(recovery_code.written(secret)))
    assert recovery_code.looks_like(typed)
    assert recovery_code.read(typed) == recovery_code.read(typed.encode()) == secret


@pytest.mark.parametrize(
    ("typed", "looks_like_one", "says"),
    [
        ("", False, "0 characters instead of 28"),
        (WRITTEN[:-1], False, "27 characters instead of 28"),
        (WRITTEN + "0", False, "29 characters instead of 28"),
        (WRITTEN.replace("9", "U"), False, "character 10 is not one"),
        (WRITTEN.replace("9", "\N{FULLWIDTH DIGIT NINE}"), False, "character 10 is not one"),
        (WRITTEN.replace("1", "\N{LATIN SMALL LETTER DOTLESS I}"), False, "character 2 is not"),
        (WRITTEN.replace("9", "8"), True, "group by group"),
        ("Thisisapassphraseitscodebarn", True, "group by group"),
        ("correct horse battery staple", False, "25 characters instead of 28"),
        (b"\xff\xfe" + WRITTEN.encode(), False, "character 1 is not one"),
    ],
)
def test_what_is_no_code_is_refused_with_a_reason(
    typed: str | bytes, looks_like_one: bool, says: str
) -> None:
    assert recovery_code.looks_like(typed) is looks_like_one
    with pytest.raises(BadCode, match=says) as refused:
        recovery_code.read(typed)
    assert "89AB" not in str(refused.value)


@given(st.text() | st.binary())
def test_anything_else_is_a_bad_code_and_no_other_error(typed: str | bytes) -> None:
    recovery_code.looks_like(typed)
    with pytest.raises(BadCode):
        recovery_code.read(typed)
