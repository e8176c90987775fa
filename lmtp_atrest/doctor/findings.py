"""What a check says: how grave it is, what it means for mail, and the way out."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How grave a finding is; a site without a problem may have warnings."""

    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the site that an operator should know.

    `refuses` is set where encrypting an account would lose its mail, hide it, or store it in
    clear: `account enable` then stops, unless the finding's name is given to `--accept`.
    """

    name: str
    level: Level
    meaning: str
    way_out: str
    refuses: bool = False


def warning(name: str, meaning: str, way_out: str) -> Finding:
    """Something works less well than it could."""
    return Finding(name, Level.WARNING, meaning, way_out)


def problem(name: str, meaning: str, way_out: str) -> Finding:
    """Something does not work, or hands secrets on; no mail is lost, hidden or in clear by it."""
    return Finding(name, Level.PROBLEM, meaning, way_out)


def refusal(name: str, meaning: str, way_out: str) -> Finding:
    """A problem by which an encrypted account loses mail, does not see it, or has it in clear."""
    return Finding(name, Level.PROBLEM, meaning, way_out, refuses=True)
