"""Secrets that people copy from paper: Crockford's base32 with two check characters.

The alphabet is Douglas Crockford's (digits and capitals without I, L, O and U; typed I and L are
read as 1, O as 0, any case). His check symbol is not: a remainder mod 37 wants five more symbols,
and one of them is U, which the alphabet leaves out for good reasons.

The check characters make the text a Reed-Solomon word over GF(32): read as a polynomial, it is a
multiple of (x - a)(x - a^2), where a generates the field's 31 units. Why that is enough:

* One wrong character at the power x^i adds e * x^i, which at x = a is e * a^i: never 0.
* Two swapped neighbours differ by the same d, and add d * x^i * (x - 1), which at x = a is
  d * a^i * (a - 1): never 0, since a is not 1. The check characters are neighbours like others.
* Any two wrong characters fewer than 31 places apart are seen too: both sums would have to be 0,
  a Vandermonde system that has no other answer. Whatever else goes wrong, and keeps the length,
  passes once in 1,024.

The check is not secret: anybody can work it out, and it adds nothing to what a guesser must find.
"""

import re
import secrets

from lmtp_atrest.errors import BadCode

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CHECK_CHARACTERS = 2
# 26 characters of 5 bits are 130 bits; KDFs without a slow step are for 128 bits and more.
SECRET_CHARACTERS = 26
GROUP = 4

_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_VALUES |= {character.lower(): value for character, value in _VALUES.items()}
_VALUES |= {"I": 1, "i": 1, "L": 1, "l": 1, "O": 0, "o": 0}
# What people, word processors and web pages put between groups: spaces and dashes of all kinds,
# and marks without width.
_SEPARATORS = re.compile(
    r"[\s\-\u00ad\u200b-\u200d\u2010-\u2015\u2060\u2212\ufe58\ufe63\ufeff\uff0d]+"
)


def draw(length: int) -> str:
    """Random characters, 5 bits each, from the system's generator."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def with_check(text: str) -> str:
    """Canonical text and its two check characters behind it."""
    first, second = _remainder([_VALUES[character] for character in text])
    return text + ALPHABET[first] + ALPHABET[second]


def grouped(text: str) -> str:
    """Groups of four with dashes between."""
    return "-".join(text[i : i + GROUP] for i in range(0, len(text), GROUP))


def canonical(typed: str | bytes) -> str:
    """Capitals of the alphabet only, in whatever way they were typed. Raises BadCode, which
    tells how far the reading got and never what was read.
    """
    values = []
    for place, character in enumerate(_without_separators(typed), start=1):
        value = _VALUES.get(character)
        if value is None:
            message = f"the code has a typo: its character {place} is not one that codes have"
            raise BadCode(message)
        values.append(value)
    return "".join(ALPHABET[value] for value in values)


def read(typed: str | bytes, length: int) -> str:
    """The canonical text of this length, check characters taken off. Raises BadCode."""
    text, expected = canonical(typed), length + CHECK_CHARACTERS
    if len(text) != expected:
        message = f"the code has a typo: it has {len(text)} characters instead of {expected}"
        raise BadCode(message)
    if with_check(text[:length]) != text:
        message = "the code has a typo: compare it with the paper, group by group"
        raise BadCode(message)
    return text[:length]


def _without_separators(typed: str | bytes) -> str:
    # Not every byte string is text; what is not becomes a character that no code has.
    text = typed.decode("utf-8", "replace") if isinstance(typed, bytes) else typed
    return _SEPARATORS.sub("", text)


def _products(factor: int) -> list[int]:
    """Each of the 32 field elements times `factor`, modulo x^5 + x^2 + 1."""

    def times(value: int) -> int:
        product = 0
        for bit in range(5):
            if factor >> bit & 1:
                product ^= value << bit
        for bit in range(8, 4, -1):
            if product >> bit & 1:
                product ^= 0b100101 << (bit - 5)
        return product

    return [times(value) for value in range(32)]


# a is the element x, written 2, so (x - a)(x - a^2) = x^2 + (a + a^2)x + a^3 = x^2 + 6x + 8.
_TIMES_6, _TIMES_8 = _products(6), _products(8)


def _remainder(values: list[int]) -> tuple[int, int]:
    """The remainder of values * x^2 by the generator: what makes the whole a multiple of it."""
    high = low = 0
    for value in values:
        carry = value ^ high
        high, low = low ^ _TIMES_6[carry], _TIMES_8[carry]
    return high, low
