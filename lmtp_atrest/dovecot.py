"""What the site's Dovecot could not read: the reasons for which `account enable` refuses.

Looks at the output of `doveconf -n` only, of 2.3 and 2.4. Each fact was measured on real Dovecot
(dovecot-facts 1, 5; auth-stack-and-operations-facts): refusing costs an operator a minute, going
on would lose or hide a user's mail.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass

from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.errors import TemporaryFailure

ANSWER_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason not to encrypt an account at this site, its short name, and the way out."""

    name: str
    reason: str
    way_out: str


MBOX = Refusal(
    "mbox",
    "Dovecot keeps mail in mbox files here, which cannot be encrypted message by message",
    "set mail_location = maildir:~/Maildir (2.4: mail_driver = maildir) and convert the mailboxes",
)
SHARED = Refusal(
    "shared-namespace",
    "there are shared or public namespaces: what an encrypted user saves there is encrypted to "
    "that user alone, and unreadable for all others",
    "make them read-only for encrypted users (acl), then give --accept shared-namespace",
)
REPLICATOR = Refusal(
    "replicator",
    "dsync replication is on: it has no key, and stops at the first encrypted user",
    "replicate below Dovecot (file system, or one shared store), or leave these users plain",
)
CURVE = Refusal(
    "curve",
    "atrest.curve is x25519, which crashes Dovecot 2.3",
    "set atrest.curve: prime256v1",
)


def refusals(doveconf: str, curve: Curve) -> list[Refusal]:
    """The refusals that hold for this output of `doveconf -n`."""
    settings = _settings(doveconf)
    version = re.match(r"# (\d+\.\d+)", doveconf)
    found = []
    if _is_mbox(settings):
        found.append(MBOX)
    if any(
        re.match(r"namespace\b", path) and key == "type" and value in ("shared", "public")
        for path, key, value in settings
    ):
        found.append(SHARED)
    if any(key == "mail_plugins" and "replication" in value.split() for _, key, value in settings):
        found.append(REPLICATOR)
    if curve is Curve.X25519 and version is not None and version[1] == "2.3":
        found.append(CURVE)
    return found


def _is_mbox(settings: list[tuple[str, str, str]]) -> bool:
    return any(
        (key in ("mail_location", "location") and value.startswith("mbox:"))
        or (key == "mail_driver" and value == "mbox")
        for _, key, value in settings
    )


def _settings(doveconf: str) -> list[tuple[str, str, str]]:
    """Every setting as (enclosing blocks, key, value)."""
    blocks: list[str] = []
    found = []
    for line in (raw.strip() for raw in doveconf.splitlines()):
        if line.endswith("{"):
            blocks.append(line[:-1].strip())
        elif line == "}":
            del blocks[-1:]
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.append(("/".join(blocks), key.strip(), value.strip()))
    return found


def read_doveconf(command: str) -> str:
    """The output of the site's `doveconf -n`; TemporaryFailure where it cannot be had."""
    try:
        result = subprocess.run(  # noqa: S603 - the operator's own command, without a shell
            shlex.split(command),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        message = (
            f"cannot see how the site's Dovecot is set up: {command}: {error}; "
            "set directory.doveconf, or null to go on without looking"
        )
        raise TemporaryFailure(message) from error
    return result.stdout
