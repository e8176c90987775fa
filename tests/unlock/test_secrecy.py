"""Where the password must not be, and what the process keeps to itself."""

import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from lmtp_atrest import telemetry
from lmtp_atrest.unlock.requests import Role
from tests.unlock.conftest import ALICE, PASSWORD
from tests.unlock.running import Running

CANARY = b"canary-4711-secret"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged at the most talkative level."""
    stream = io.StringIO()
    telemetry.configure("debug", stream, json=True)
    yield stream
    structlog.reset_defaults()


def request(op: str, **fields: object) -> bytes:
    return json.dumps({"op": op, **fields}).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_no_secret_is_logged_at_any_level(unlock: Running, log: io.StringIO) -> None:
    name, login = b64(ALICE.encode()), {"service": "imap", "mechanism": "PLAIN"}
    lines = {
        Role.DOVECOT: [
            request("login", name=name, secret=b64(CANARY), site_verified=True, **login),
            request(
                "login", name=name, secret=b64(PASSWORD.reveal()), site_verified=True, **login
            ),
            request("login", name=name, secret=CANARY.decode(), site_verified=True, **login),
            request("login", name=name, canary=CANARY.decode()),
            request("app-login", name=name, secret=b64(CANARY)),
            CANARY,
            b'{"op":"login","secret":"' + CANARY + b'"\xff}',
        ],
        Role.READER: [
            request("open", name=name, secret=b64(CANARY), source="s"),
            request("open", name=b64(CANARY), secret=b64(CANARY), source="s"),
            request("keys", token=CANARY.decode()),
        ],
        Role.ADMIN: [
            request("account-enable", name=b64(b"bob@example.org"), secret=b64(CANARY)),
            request("account-enable", name=name, secret=b64(CANARY)),
        ],
    }
    replies = [
        await unlock.line(role, line) for role, role_lines in lines.items() for line in role_lines
    ]
    opened = next(reply for reply in replies if reply["result"] == "opened")
    written = log.getvalue()
    assert '"event": "login"' in written
    for secret in (CANARY, PASSWORD.reveal(), opened["password1"].encode()):
        for form in (secret.decode(), b64(secret), secret.hex()):
            assert form not in written
            assert form not in json.dumps([r for r in replies if r is not opened])
    assert opened["private_key1"] not in written


async def test_a_hardened_process_dumps_nothing() -> None:
    program = (
        "import ctypes, json, resource, sys;"
        "from lmtp_atrest.unlock.hardening import harden;"
        "missing = harden();"
        "status = open('/proc/self/status').read();"
        "print(json.dumps([missing, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),"
        "resource.getrlimit(resource.RLIMIT_CORE),"
        "[int(l.split()[1]) for l in status.splitlines() if l.startswith('VmLck')][0]]))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    missing, dumpable, core, locked = json.loads(output.splitlines()[-1])
    assert (dumpable, core) == (0, [0, 0])
    assert "core-limit" not in missing
    assert (locked > 0) is ("locked-memory" not in missing)
