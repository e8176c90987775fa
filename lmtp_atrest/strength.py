"""How hard a secret is to guess, by zxcvbn, in words that say what to do about it.

Used when a secret is chosen (it may be refused) and when one is met at a login (a warning only).
It judges what a guesser would try; it asks no service, and keeps nothing of the secret.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from re import split
from threading import Lock

from zxcvbn import zxcvbn
from zxcvbn.matching import L33T_TABLE

from lmtp_atrest.errors import UsageError
from lmtp_atrest.secret import Secret

# zxcvbn's work grows with the square of the length, and again with each way to read look-alikes
# (`4` and `@` for a, `(`, `{`, `[` and `<` for c) back into letters: 72 characters of those took
# 1,060 ms, 72 ordinary ones 83 ms. What is behind the cut can only make a secret stronger.
LENGTH_LIMIT = 48
WORK_LIMIT = 8 * LENGTH_LIMIT**2

WARNINGS = (
    "It is among the first thousand that a guesser would try.",
    "A guesser would have it within about a million tries.",
    "A guesser would have it within about a hundred million tries.",
)
_ABOUT = "It is made from the address or name of its owner."
_ADVICE = "Take four or more unrelated words, or let a password manager make one."

# zxcvbn keeps the words about the user in a global dictionary while it works.
_one_at_a_time = Lock()


@dataclass(frozen=True, slots=True)
class Strength:
    """`score` 0 (worst) to 4; `guesses_log10` tries to expect, as a power of ten; `warning` is
    empty from score 3 on.
    """

    score: int
    guesses_log10: float
    warning: str
    suggestions: tuple[str, ...]


def judge(secret: Secret, about: Sequence[str] = ()) -> Strength:
    """How hard it is to guess for somebody who knows `about`: address, name, site. Takes any
    bytes, and up to 50 ms; one at a time in a process.
    """
    text = _affordable(_text(secret.reveal()))
    if not text:
        return Strength(0, 0.0, "It is empty.", (_ADVICE,))
    with _one_at_a_time:
        found = zxcvbn(text, user_inputs=_words(about))
    score, feedback = int(found["score"]), found["feedback"]
    if score >= len(WARNINGS):
        return Strength(score, float(found["guesses_log10"]), "", ())
    return Strength(
        score,
        float(found["guesses_log10"]),
        feedback["warning"] or _own_warning(score, found["sequence"]),
        tuple(feedback["suggestions"]) or (_ADVICE,),
    )


def require(secret: Secret, minimum: int, about: Sequence[str] = ()) -> Strength:
    """The same for a secret that is chosen here; UsageError below this score, in words."""
    strength = judge(secret, about)
    if strength.score < minimum:
        message = " ".join((strength.warning, *strength.suggestions))
        raise UsageError(message)
    return strength


def _own_warning(score: int, sequence: Sequence[Mapping[str, object]]) -> str:
    """For what zxcvbn finds weak without a word."""
    if any(part.get("dictionary_name") == "user_inputs" for part in sequence):
        return _ABOUT
    return WARNINGS[score]


def _text(secret: bytes) -> str:
    # Latin-1 gives every byte a character of its own, so that foreign bytes are not all alike.
    try:
        return secret.decode()
    except UnicodeDecodeError:
        return secret.decode("latin-1")


def _words(about: Sequence[str]) -> list[str]:
    """Each text, the parts around its @, and its words: of `anna.meyer@example.org` also
    `anna.meyer` and `meyer`.
    """
    words = [
        word
        for text in about
        for word in (text, *text.split("@"), *split(r"[\W_]+", text))
        if word
    ]
    return list(dict.fromkeys(words))


def _affordable(text: str) -> str:
    """The longest beginning whose judging is bounded work."""
    text = text[:LENGTH_LIMIT]
    while _readings(text) * len(text) ** 2 > WORK_LIMIT:
        text = text[:-1]
    return text


def _readings(text: str) -> int:
    """In how many ways look-alikes of the text can be read as letters."""
    present = set(text)
    return prod(max(1, len(present.intersection(likes))) for likes in L33T_TABLE.values())
