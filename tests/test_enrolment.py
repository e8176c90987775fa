"""At the start of `serve`: enrolment at login only where `account enable` would not refuse."""

import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lmtp_atrest.config import AtRest, Config, Directory, Portal
from lmtp_atrest.doctor.enrolment import suitable
from tests.test_dovecot import PRINTED

AT_LOGIN = AtRest(enrolment="at-login")


def site(tmp_path: Path, shown: str, code: int = 0) -> Config:
    """A site whose Dovecot prints these settings."""
    doveconf = tmp_path / "doveconf"
    (tmp_path / "shown").write_text(shown)
    doveconf.write_text(f"#!/bin/sh\ncat {tmp_path}/shown\nexit {code}\n")
    doveconf.chmod(doveconf.stat().st_mode | stat.S_IXUSR)
    return Config(atrest=AT_LOGIN, directory=Directory(doveconf=str(doveconf)))


@pytest.mark.parametrize(
    ("edit", "code", "enrolment", "reason"),
    [
        (("", ""), 0, "at-login", ""),
        (("maildir:~/Maildir", "mbox:~/mail"), 0, "self-service", "mbox"),
        (("", ""), 1, "self-service", "doveconf"),
    ],
)
def test_a_site_that_would_lose_or_hide_mail_enrols_nobody_at_login(
    tmp_path: Path, edit: tuple[str, str], code: int, enrolment: str, reason: str
) -> None:
    config = site(tmp_path, (PRINTED / "site-2.3.txt").read_text().replace(*edit), code)
    with capture_logs() as logs:
        found = suitable(config)
    said = [str(line["reasons"]) for line in logs]
    assert found.atrest.enrolment == enrolment
    assert (not said) if not reason else reason in said[0]


@pytest.mark.parametrize("enrolment", ["at-login", "self-service"])
@pytest.mark.parametrize(
    ("location", "expected"), [("maildir:~/Maildir", ""), ("mbox:~/mail", "closed")]
)
def test_nor_does_the_portal_let_users_do_it(
    tmp_path: Path, location: str, expected: str, enrolment: str
) -> None:
    shown = (PRINTED / "site-2.3.txt").read_text().replace("maildir:~/Maildir", location)
    atrest = AtRest.model_validate({"enrolment": enrolment})
    sections = {"portal": Portal(listen="127.0.0.1:0"), "atrest": atrest}
    config = site(tmp_path, shown).model_copy(update=sections)
    assert suitable(config).atrest.enrolment == (expected or enrolment)


def test_without_a_dovecot_to_look_at_the_configuration_stands() -> None:
    config = Config(atrest=AT_LOGIN, directory=Directory(source="keystore"))
    assert suitable(config).atrest.enrolment == "at-login"
