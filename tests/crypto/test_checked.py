"""The check characters, against errors of every kind that the module claims to see."""

from collections.abc import Iterator
from itertools import combinations

import pytest

from lmtp_atrest.crypto import checked
from lmtp_atrest.errors import BadCode

ALPHABET = checked.ALPHABET
LENGTHS = {"recovery code": 26, "app password with its handle": 30}
both_lengths = pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())


def random_words(count: int, length: int) -> list[str]:
    return [checked.with_check(checked.draw(length)) for _ in range(count)]


def with_one_wrong(word: str) -> Iterator[str]:
    for place, right in enumerate(word):
        for wrong in ALPHABET.replace(right, ""):
            yield word[:place] + wrong + word[place + 1 :]


def with_neighbours_swapped(word: str) -> Iterator[str]:
    for place in range(len(word) - 1):
        first, second = word[place], word[place + 1]
        if first != second:
            yield word[:place] + second + first + word[place + 2 :]


def with_two_wrong(word: str) -> Iterator[str]:
    """All pairs of places; of the errors only their ratio matters, the check being linear."""
    for i, j in combinations(range(len(word)), 2):
        if j - i < 31:
            for wrong in ALPHABET.replace(word[j], ""):
                first = ALPHABET[ALPHABET.index(word[i]) ^ 1]
                yield word[:i] + first + word[i + 1 : j] + wrong + word[j + 1 :]


def passes(word: str, length: int) -> bool:
    try:
        checked.read(word, length)
    except BadCode:
        return False
    return True


@both_lengths
def test_every_single_wrong_character_is_seen(length: int) -> None:
    for word in random_words(12, length):
        assert passes(word, length)
        assert not [bad for bad in with_one_wrong(word) if passes(bad, length)]


@both_lengths
def test_every_swap_of_neighbours_is_seen(length: int) -> None:
    for word in random_words(200, length):
        assert not [bad for bad in with_neighbours_swapped(word) if passes(bad, length)]


@both_lengths
def test_every_two_wrong_characters_are_seen(length: int) -> None:
    for word in random_words(2, length):
        assert not [bad for bad in with_two_wrong(word) if passes(bad, length)]


def times(left: int, right: int) -> int:
    """Multiplication in GF(32) the slow way, to hold the tables against."""
    product = 0
    while right:
        product ^= left * (right & 1)
        left, right = left << 1, right >> 1
        left ^= 0b100101 if left & 32 else 0
    return product


def test_a_checked_word_has_both_roots() -> None:
    for word in random_words(200, 26):
        for root in (2, times(2, 2)):
            total = 0
            for character in word:
                total = times(total, root) ^ ALPHABET.index(character)
            assert total == 0


def test_the_root_generates_all_31_units() -> None:
    power, seen = 1, set()
    for _ in range(31):
        seen.add(power)
        power = times(power, 2)
    assert len(seen) == 31


def test_characters_are_drawn_evenly() -> None:
    # 32,000 draws: each of the 32 characters 1,000 times, give or take 31; six of those are never.
    drawn = checked.draw(32_000)
    assert all(abs(drawn.count(character) - 1000) < 190 for character in ALPHABET)
