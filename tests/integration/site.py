"""A site that has deployed what is below `deploy/`: its people, and its Dovecot's settings."""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path

from tests.peers.atrest import MAIL_USER, UNLOCK_USER
from tests.peers.dovecot import Dovecot

DEPLOY = Path(__file__).parents[2] / "deploy"
ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
PASSWORD = "correct horse; battery\"staple' \\ {}%u ünïcödé"
USERS = {ALICE: PASSWORD, BOB: "bob's own", CAROL: "changed at the site"}
MESSAGE = b"From: eve@example.net\r\nSubject: canary-subject\r\n\r\ncanary-body\r\n"


def deploy(dovecot: Dovecot, *extra: str, storage: str = "maildir:~/Maildir") -> None:
    """Install script and snippet as the snippet says; the settings before it are the site's.

    `storage` is a mail location of 2.3; what it says is written into each version's places.
    """
    host = dovecot.host
    script = (DEPLOY / "dovecot/lmtp-atrest.lua").read_text()
    snippet = (DEPLOY / f"dovecot/dovecot-{dovecot.version}.conf").read_text()
    host.write("/etc/dovecot/masters", "boss:{PLAIN}master secret\n")
    driver, _, path = storage.partition(":")
    script = _edited(script, 'MAIL_LOCATION = "maildir:~/Maildir"', f'MAIL_LOCATION = "{storage}"')
    snippet = _edited(snippet, "    user = vmail", f"    user = {MAIL_USER}")
    snippet = _edited(snippet, "    group = lmtp-atrest", f"    group = {UNLOCK_USER}")
    if dovecot.version == "2.4":
        snippet = _edited(snippet, "mail_driver = maildir", f"mail_driver = {driver}")
        snippet = _edited(snippet, "_path = ~/Maildir", f"_path = {path}")
        if driver != "maildir":
            snippet = _edited(snippet, f"mail_inbox_path = {path}", "mail_inbox_path =")
    host.write("/etc/dovecot/lmtp-atrest.lua", script)
    dovecot.conf = f"mail_location = {storage}\n" if dovecot.version == "2.3" else ""
    dovecot.conf += "".join(extra) + snippet


def _edited(text: str, shipped: str, own: str) -> str:
    assert shipped in text, shipped
    return text.replace(shipped, own)


def everything(dovecot: Dovecot) -> tuple[str, ...]:
    """More of what a site may have: mechanisms without a password, master users, tokens."""
    return dovecot.settings.debugging, dovecot.settings.masters, dovecot.settings.tokens


def token(dovecot: Dovecot, name: str) -> str:
    """An OAuth2 token that this Dovecot takes: 2.3's settings take any, 2.4 checks a JWT."""
    key = b"known to Dovecot and to the identity provider"
    path = "/etc/dovecot/oauth2-keys/default/HS256/default"
    dovecot.host.write(path, base64.b64encode(key).decode())
    now = int(time.time())
    claims = {"sub": name, "iat": now - 60, "nbf": now - 60, "exp": now + 600}
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
    signature = hmac.digest(key, signed.encode(), hashlib.sha256)
    return f"{signed}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
