"""`doctor` and `serve` at a site without a Dovecot to look at, or where Dovecot delivers."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lmtp_atrest.cli.demo import CONFIG
from lmtp_atrest.config import Listener
from lmtp_atrest.doctor.services import as_user, greets_lmtp, greets_unlock
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import Role
from tests.cli.calling import call
from tests.cli.conftest import QUIET, RunningSite
from tests.ports import free_port

NO_POSTFIX = ("--postconf", "/nonexistent/postconf")


def test_a_site_without_dovecot_is_looked_at_too(running: RunningSite) -> None:
    result = call("doctor", "-c", running.config, *NO_POSTFIX)
    assert result.returncode == 0, result.stdout
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"ok"}


def test_dovecot_that_is_not_looked_at_is_a_warning(running: RunningSite, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    unseen = f"{{source: dovecot, doveconf: null, socket: {tmp_path}/none}}"
    text = running.config.read_text().replace("{source: keystore}", unseen)
    config.write_text(text)
    config.chmod(0o644)
    told = json.loads(call("doctor", "-c", config, *NO_POSTFIX, "--json").stdout)
    levels = {line["name"]: line["level"] for line in told if "name" in line}
    assert levels == {
        "doveconf": "warning",
        "directory": "problem",
        "directory-unlock": "warning",
    }


def test_where_dovecot_delivers_serve_has_no_lmtp_and_doctor_misses_none(tmp_path: Path) -> None:
    port, config = free_port(), tmp_path / "lmtp-atrest.yaml"
    text = (CONFIG + QUIET).format(root=tmp_path, port=port, user=tmp_path.owner())
    config.write_text(text.replace("mail: {", "mail: {delivered_by: dovecot, "))
    config.chmod(0o644)
    assert call("init", "-c", config).returncode == 0
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "lmtp_atrest", "serve", "-c", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(tmp_path / "run/unlock/admin.sock")
        assert greets_lmtp(Listener.parse(f"127.0.0.1:{port}")) is not None
        assert call("doctor", "-c", config, *NO_POSTFIX).returncode == 0
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
    gone = call("doctor", "-c", config, *NO_POSTFIX)
    assert gone.returncode == 10
    assert "problem  unlock-down: " in gone.stdout


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(AtRestError):
            SyncClient(path, Role.ADMIN).close()
            return
        time.sleep(0.05)
    message = f"nobody answers at {path}"
    raise AssertionError(message)


def test_a_socket_that_is_somebody_else_s_is_told(running: RunningSite) -> None:
    assert greets_lmtp(Listener.parse(f"127.0.0.1:{running.port}")) is None
    admin = running.root / "run/unlock/admin.sock"
    assert greets_unlock(admin, Role.ADMIN) is None
    assert greets_unlock(admin, Role.DOVECOT) is not None
    assert greets_lmtp(Listener(path=str(admin))) is not None
    assert greets_lmtp(Listener(path="/nonexistent/lmtp")) == "No such file or directory"


@pytest.mark.parametrize(("sentence", "told"), [("", None), ("ä refused", "ä refused")])
def test_a_question_is_asked_with_the_rights_of_another_user(
    sentence: str, told: str | None
) -> None:
    assert as_user(None, lambda: sentence) == told
    assert as_user("nobody", lambda: sentence) == told
    assert as_user("no-such-user", lambda: "") in (None, "user no-such-user does not exist")
