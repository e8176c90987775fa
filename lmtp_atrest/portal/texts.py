"""What the pages say, in each language: one catalogue a language, all with the same keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtp_atrest.texts import LANGUAGES, catalogue

DIRECTORY = Path(__file__).parent / "texts"
ACCEPT_LIMIT = 200  # bytes of Accept-Language that are looked at


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one language."""

    language: str
    texts: Mapping[str, str]

    def __call__(self, key: str, /, **values: Any) -> str:
        """The text of this key with its placeholders filled in; KeyError for one that is not."""
        return self.texts[key].format_map(values)

    def day(self, milliseconds: int) -> str:
        """A day as people write it, in UTC."""
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
        month = self.texts["date.months"].split()[when.month - 1]
        return self("date.day", day=when.day, month=month, year=when.year)

    def date(self, iso: str) -> str:
        """The same for a day that was noted as such."""
        return self.day(int(datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp() * 1000))

    def time(self, milliseconds: int) -> str:
        """A time of day in UTC."""
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%H:%M UTC")

    def span(self, seconds: int) -> str:
        """A span of time in its largest whole unit."""
        for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
            if seconds >= length:
                return self(f"span.{unit}", count=seconds // length)
        return self("span.moments")


def catalogues() -> dict[str, Texts]:
    """All languages, read at the start."""
    return {language: Texts(language, catalogue(DIRECTORY, language)) for language in LANGUAGES}


def chosen(cookie: str | None, accept: str, otherwise: str) -> str:
    """The language of a visit: the one the visitor chose, else what the browser asks for first."""
    if cookie in LANGUAGES:
        return cookie
    for language in _wanted(accept[:ACCEPT_LIMIT]):
        if language in LANGUAGES:
            return language
    return otherwise


def _wanted(accept: str) -> list[str]:
    """The languages of an Accept-Language header, without regions, best first."""
    weighted = []
    for part in accept.split(","):
        tag, _, parameters = part.strip().partition(";")
        try:
            weight = float(parameters.strip().removeprefix("q=") or "1")
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighted.append((weight, tag.strip().lower().partition("-")[0]))
    return [tag for _, tag in sorted(weighted, key=lambda one: -one[0])]
