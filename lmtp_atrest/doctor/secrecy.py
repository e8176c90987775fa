"""What Dovecot writes in clear, or leaves in clear, beside the messages that are encrypted."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lmtp_atrest.doctor.facts import OUR_SCRIPT, Facts, script_path
from lmtp_atrest.doctor.findings import Finding, problem, refusal, warning
from lmtp_atrest.dovecot import Doveconf

HOME_WORD = re.compile(r"%L?h|%\{\s*home\s*\}")
IN_RAM = ("tmpfs", "ramfs")
# Which of them reads or stores mail of a user; the rest load no mail plugins, or none that count.
STORING = ("imap", "pop3", "lmtp", "lda")


def plugins(facts: Facts) -> Iterator[Finding]:
    """mail_crypt in each protocol, and no search index."""
    if facts.doveconf is None:
        return
    served = facts.doveconf.protocols()
    without = [p for p in _present(served) if "mail_crypt" not in facts.doveconf.plugins(p)]
    if without:
        yield refusal(
            "mail-crypt-missing",
            f"mail_plugins has no mail_crypt for {', '.join(without)}: what these store is in "
            "clear, and what is encrypted they cannot read",
            "add mail_crypt there; `doveconf -f protocol=NAME mail_plugins` must show it",
        )
    if "mail_crypt" not in facts.doveconf.plugins("doveadm"):
        yield warning(
            "mail-crypt-missing",
            "mail_plugins has no mail_crypt for doveadm: `doveadm save` stores in clear",
            "add mail_crypt to the global mail_plugins",
        )
    if any("fts" in facts.doveconf.plugins(protocol) for protocol in ("", *STORING, "doveadm")):
        yield refusal(
            "full-text-search",
            "the fts plugin is on: a search index is the text of the mail, in clear",
            "take fts and its backend out of mail_plugins, delete the index files",
        )


def _present(served: set[str]) -> list[str]:
    """`lda` is no service and always there; without a `protocols` line, all are."""
    return [p for p in STORING if p == "lda" or not served or p in served]


def without_key(facts: Facts) -> Iterator[Finding]:
    """The setting by which users who are not encrypted stay so."""
    if facts.doveconf is None:
        return
    plugin = {
        k: v for block in facts.doveconf.root.of("plugin") for k, v in block.settings.items()
    }
    if facts.doveconf.version == "2.3" and plugin.get("mail_crypt_save_version") != "0":
        yield problem(
            "save-version",
            "plugin { mail_crypt_save_version = 0 } is not set: users without encryption cannot "
            "open their mail, and every other delivery of Dovecot's LMTP fails (451)",
            "set it globally; encrypted users get their own value",
        )
    if facts.doveconf.version == "2.4" and facts.doveconf.get("crypt_write_algorithm", "x"):
        yield problem(
            "write-algorithm",
            "crypt_write_algorithm is not empty: for users without encryption Dovecot saves "
            "nothing (APPEND is refused, its LMTP answers 451)",
            "set `crypt_write_algorithm =` globally; encrypted users get their own value",
        )


def in_ram(facts: Facts) -> Iterator[Finding]:
    """Directories for what is in clear: they must not be on a disk."""
    unlock = facts.config.unlock
    needed = {"temp_dir": unlock.temp_dir}
    if unlock.cache == "ram":
        needed["cache_root"] = unlock.cache_root
    for name, path in needed.items():
        kind = file_system(facts.mounts, path)
        if kind not in IN_RAM:
            yield refusal(
                "not-in-ram",
                f"unlock.{name} ({path}) is on {kind or 'an unknown file system'}: what Dovecot "
                "writes there in clear stays on the disk",
                f"name a directory on a tmpfs, such as below /dev/shm, as unlock.{name}",
            )
    if facts.doveconf is None:
        return
    path = Path(facts.doveconf.get("mail_temp_dir", "/tmp"))  # noqa: S108 - Dovecot's default
    if file_system(facts.mounts, path) not in IN_RAM:
        yield warning(
            "mail-temp-dir",
            f"mail_temp_dir is {path}, which is on a disk: larger messages lie there in clear "
            "for a moment, before it is known whose they are",
            "set mail_temp_dir = /dev/shm",
        )


def file_system(mounts: str, path: Path) -> str:
    """The type of the file system that a path is on, by /proc/mounts; empty if there is none."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        point, found = (re.sub(r"\\(\d{3})", _octal, part) for part in line.split()[1:3])
        # Later lines lie over earlier ones.
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind


def _octal(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def script(facts: Facts) -> Iterator[Finding]:
    """The installed Lua script: readable, asking our socket, and true to Dovecot's location."""
    path = script_path(facts.doveconf) if facts.doveconf else None
    if facts.doveconf is None or path is None:
        return  # said of the passdb
    if facts.script is None:
        yield problem(
            "script-missing",
            f"cannot read {path}: without it nobody logs in",
            f"copy deploy/dovecot/{OUR_SCRIPT} there",
        )
        return
    ours = facts.config.unlock.sockets / "dovecot.sock"
    if facts.script.get("SOCKET") != str(ours):
        yield problem(
            "script-socket",
            f"{path} asks {facts.script.get('SOCKET')}, the unlock service listens on {ours}: "
            "nobody logs in",
            "make SOCKET in the script and unlock.sockets the same",
        )
    if facts.cache_in_location:
        yield from _location(facts.doveconf, facts.script)


def _location(doveconf: Doveconf, constants: Mapping[str, str]) -> Iterator[Finding]:
    """On 2.3 the index cache goes to RAM by a location of the script's own, for logins too."""
    location = doveconf.get("mail_location")
    # Shared ones are refused as such.
    own = [b for b in doveconf.root.of("namespace") if b.get("location") and not b.shared]
    for namespace in own:
        yield refusal(
            "namespace-location",
            f"namespace {namespace.name} has a location of its own ({namespace.get('location')}): "
            "its index cache stays there, with headers in clear",
            "say the location once, in mail_location, or set unlock: {cache: none}",
        )
    named = constants.get("MAIL_LOCATION", "")
    if HOME_WORD.search(named):
        yield refusal(
            "script-location",
            f"MAIL_LOCATION in {OUR_SCRIPT} is {named}: the home directory is not known there "
            "yet, and encrypted users cannot open their mail",
            "write ~ instead in mail_location and in the script, or set unlock: {cache: none}",
        )
    elif named != location:
        yield refusal(
            "script-location",
            f"MAIL_LOCATION in {OUR_SCRIPT} is {named}, Dovecot's mail_location is {location}: "
            "encrypted users see another mailbox than before",
            "write Dovecot's mail_location into the script, or set unlock: {cache: none}",
        )


def own_location(facts: Facts) -> Iterator[Finding]:
    """A userdb with a `mail` field of its own: on 2.3 it wins, and the cache falls on the disk."""
    if not facts.cache_in_location:
        return
    in_cache = f"INDEXCACHE={facts.config.unlock.cache_root}"
    for user in facts.users:
        mail = user.fields.get("mail", "")
        if mail and in_cache not in mail:
            yield refusal(
                "user-location",
                f"the site's userdb gives {user.name} a location of its own ({mail}); it wins "
                "over ours, and the index cache lies beside the mail, with headers in clear",
                "say the location once, in mail_location, or set unlock: {cache: none}",
            )


def reading(facts: Facts) -> Iterator[Finding]:
    """What a client sees of a message that does not open."""
    if facts.doveconf is None:
        return
    found = facts.doveconf.get("imap_fetch_failure", "disconnect-immediately", "imap")
    if found != "no-after":
        yield warning(
            "imap-fetch-failure",
            f"imap_fetch_failure is {found}: one message that does not open ends the session, "
            "and clients never get to the others",
            "set imap_fetch_failure = no-after",
        )
