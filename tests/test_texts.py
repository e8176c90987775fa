"""All languages say the same things, and no page says anything of its own."""

import re
import string
from pathlib import Path

import pytest
from jinja2 import Environment, nodes

from lmtp_atrest import notify
from lmtp_atrest.portal import place, texts
from lmtp_atrest.texts import LANGUAGES, Language, catalogue

TEMPLATES = sorted((place.HERE / "templates").glob("*.html"))
CODE = [*place.HERE.glob("*.py")]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("directory", [texts.DIRECTORY, notify.DIRECTORY], ids=lambda d: d.parent)
def test_a_catalogue_has_the_keys_and_placeholders_of_the_english_one(
    directory: Path, language: Language
) -> None:
    english, other = catalogue(directory, "en"), catalogue(directory, language)
    assert other.keys() == english.keys()
    for key, text in english.items():
        assert placeholders(other[key]) == placeholders(text), key
        assert other[key], key
    same = [key for key, text in english.items() if len(text) > 24 and other[key] == text]
    assert not same, "not translated"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_holds_words_of_its_own(template: Path) -> None:
    parsed = Environment().parse(template.read_text())
    output = "".join(data.data for data in parsed.find_all(nodes.TemplateData))
    output = re.sub(r"<!DOCTYPE html>|<[^<>]*>", " ", output)
    written = re.sub(r"<[^>]*|[^<]*>", " ", output)  # tags that a placeholder cuts through
    assert not re.findall(r"[^\W\d_]{2,}", written)


def test_every_text_is_used_and_every_one_used_is_there() -> None:
    sources = "\n".join(path.read_text() for path in [*TEMPLATES, *CODE])
    named = set(re.findall(r"[\"']((?:[a-z-]+\.)[a-z0-9-]+)[\"']", sources))
    prefixes = set(re.findall(r"[\"']([a-z-]+\.(?:[a-z]+-)?)(?:\{|[\"'] ~)", sources))
    english = catalogue(texts.DIRECTORY, "en")
    unused = [k for k in english if k not in named and not any(map(k.startswith, prefixes))]
    assert not unused
    sections = {key.partition(".")[0] for key in english}
    used = {key for key in named if key.partition(".")[0] in sections}
    missing = {key for key in used if not key.endswith((".html", "-"))} - english.keys()
    assert not missing
