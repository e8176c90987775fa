"""Catalogues of what people are told, one file a language, all with the same keys."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import yaml

Language: TypeAlias = Literal["en", "de", "fr", "es"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@cache
def catalogue(directory: Path, language: Language) -> Mapping[str, str]:
    """The texts of a language; keys of sections within sections are joined by dots."""
    return _flat(yaml.safe_load((directory / f"{language}.yaml").read_text("utf-8")))


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value).strip()
    return flat
