import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtp_atrest import config
from lmtp_atrest.config import Config
from lmtp_atrest.errors import ConfigError
from lmtp_atrest.portal.address import Address

COMMENTED = Path(config.__file__).parent / "lmtp-atrest.yaml"
BAD = sorted((Path(__file__).parent / "bad_configs").iterdir())


def test_the_commented_file_equals_the_defaults() -> None:
    text = COMMENTED.read_text()
    assert config.parse(text) == Config()
    shown: dict[str, Any] = yaml.safe_load(_only_defaults(text))
    assert config.parse(yaml.safe_dump(shown)) == Config()
    assert shown.keys() == Config.model_fields.keys()
    for name, section in shown.items():
        assert section.keys() == type(getattr(Config(), name)).model_fields.keys(), name


def _only_defaults(text: str) -> str:
    kept = []
    for line in text.splitlines():
        if match := re.fullmatch(r"(  )# ((?:  )?[a-z0-9_]+:(?: .*)?)", line):
            setting = match[2].strip()
            example = "/etc/lmtp-atrest/lmtp.crt" in setting or "makes alice" in setting
            sentence = re.match(r"(none|fold|null|defer): [A-Za-z]", setting)
            if not example and not sentence:
                kept.append(match[1] + match[2])
        elif line and not line.lstrip().startswith("#"):
            kept.append(line)
    return "\n".join(kept)


def test_what_is_shown_reads_back_as_the_same(tmp_path: Path) -> None:
    shown = yaml.safe_dump(Config().model_dump(mode="json"))
    path = tmp_path / "config.yaml"
    path.write_text(shown)
    assert config.load(path) == Config()


@pytest.mark.parametrize("case", BAD, ids=lambda path: path.name)
def test_bad_configs_are_refused_with_the_expected_complaints(case: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(case / "config.yaml")
    expected = (case / "expected-error").read_text().splitlines()
    assert len(caught.value.faults) == len(expected), caught.value
    for pattern, fault in zip(expected, caught.value.faults, strict=True):
        assert re.search(pattern, fault), fault


def test_a_file_that_others_may_write_to_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        config.load(path)
    path.touch()
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="chmod go-w"):
        config.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50MiB", 50 << 20), ("1GiB", 1 << 30), ("0B", 0), ("19 MiB", 19 << 20)],
)
def test_sizes_have_units(text: str, expected: int) -> None:
    assert config.parse(f"lmtp: {{max_message_size: {text}}}").lmtp.max_message_size == expected


def test_yes_and_no_stay_words() -> None:
    parsed = config.parse("lmtp: {header_rules: [{header: X-Spam, value: YES, folder: off}]}")
    assert parsed.lmtp.header_rules[0].value == "YES"
    assert parsed.lmtp.header_rules[0].folder == "off"


def test_listeners_are_private_or_not() -> None:
    cases = {"127.0.0.1:24": True, "[::1]:24": True, "unix:/run/x": True, "192.0.2.1:24": False}
    for text, private in cases.items():
        assert config.Listener.parse(text).private is private, text


@pytest.mark.parametrize(
    ("template", "name", "home"),
    [
        ("{root}/{user}", "alice@example.org", "/var/vmail/alice@example.org"),
        ("/srv/{domain}/{local}", "alice@example.org", "/srv/example.org/alice"),
        ("/srv/{local}", "alice", "/srv/alice"),
        ("{root}/{user}", "../../etc", None),
        ("{root}/{user}", "a/b@example.org", None),
        ("{root}/{user}", ".hidden@example.org", None),
        ("/srv/{domain}/{local}", "alice", None),
        ("/srv/{domain}/{local}", "-rf@example.org", None),
        ("{root}/{user}", "a\0b", None),
        ("{root}/{user}", "", None),
    ],
)
def test_a_name_becomes_a_home_only_if_it_is_a_harmless_component(
    template: str, name: str, home: str | None
) -> None:
    assert config.parse(f'mail: {{home: "{template}"}}').mail.home_of(name) == home


@pytest.mark.parametrize(
    ("template", "inbox"),
    [
        ("{maildir}", "/srv/a/Maildir"),
        ("{maildir}/.INBOX", "/srv/a/Maildir/.INBOX"),
        ("{home}/inbox", "/srv/a/inbox"),
    ],
)
def test_inbox_is_the_maildir_or_lies_below_it_or_the_home(template: str, inbox: str) -> None:
    mail = config.parse(f'mail: {{inbox: "{template}"}}').mail
    assert mail.inbox_of("/srv/a", "/srv/a/Maildir") == inbox


@pytest.mark.parametrize(
    ("url", "origin", "path", "secure"),
    [
        ("https://mail.example.org", "https://mail.example.org", "", True),
        ("https://Mail.Example.org:443/a/b/", "https://mail.example.org", "/a/b", True),
        ("https://[::1]:8443/keys", "https://[::1]:8443", "/keys", True),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "", False),
    ],
)
def test_the_portal_s_address_says_where_it_is(
    url: str, origin: str, path: str, secure: bool
) -> None:
    portal = config.parse(f"portal: {{url: '{url}'}}").portal
    assert Address.of(portal.url) == Address(origin, path, secure)
