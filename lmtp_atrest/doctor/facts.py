"""What the checks look at: texts and values that were collected before, nothing that is running.

Collecting and judging are apart so that a check can be tested with what real servers printed.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtp_atrest.config import Config
from lmtp_atrest.directory import DovecotDirectory, Found
from lmtp_atrest.dovecot import Doveconf, read_doveconf
from lmtp_atrest.errors import AtRestError

OUR_SCRIPT = "lmtp-atrest.lua"
SCRIPT_CONSTANT = re.compile(r'^\s*local\s+([A-Z_]+)\s*=\s*"([^"]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class User:
    """An account of ours, and what Dovecot's user database says of it."""

    name: str
    home: str
    maildir: str
    answer: Found | None = None

    @property
    def fields(self) -> Mapping[str, str]:
        """What the user database gives beside home and ids; nothing where it did not answer."""
        return self.answer.fields if self.answer else {}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks of the configuration need.

    `doveconf` is None where there is no Dovecot to look at; `script` maps the constants of the
    installed Lua script, and is None where it cannot be read. `mounts` is /proc/mounts.
    """

    config: Config
    doveconf: Doveconf | None = None
    script: Mapping[str, str] | None = None
    mounts: str = ""
    users: tuple[User, ...] = ()

    @property
    def our_lmtp(self) -> bool:
        """True where new mail is stored by lmtp-atrest, in Maildirs."""
        return self.config.mail.delivered_by == "lmtp-atrest"

    @property
    def cache_in_location(self) -> bool:
        """True where the index cache moves to RAM with the location: 2.3 has no other way."""
        version = self.doveconf.version if self.doveconf else ""
        return version == "2.3" and self.config.unlock.cache == "ram"


def collect(config: Config, users: Sequence[User] = ()) -> Facts:
    """Look at this machine. TemporaryFailure where the site's Dovecot does not show its settings.

    `users` are completed with what Dovecot says of them, as far as it answers.
    """
    doveconf = None
    if config.directory.source == "dovecot" and config.directory.doveconf is not None:
        doveconf = Doveconf.parse(read_doveconf(config.directory.doveconf))
    return Facts(
        config,
        doveconf,
        _script(doveconf) if doveconf else None,
        Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape"),
        asyncio.run(_completed(config, users)),
    )


async def _completed(config: Config, users: Sequence[User]) -> tuple[User, ...]:
    if config.directory.source != "dovecot":
        return tuple(users)
    async with DovecotDirectory(config.directory.socket) as directory:
        return tuple([await _complete(directory, user) for user in users])


async def _complete(directory: DovecotDirectory, user: User) -> User:
    try:
        answer = await directory.lookup(user.name)
    except AtRestError:  # said by the check of the directory, for all users at once
        answer = None
    return User(user.name, user.home, user.maildir, answer)


def script_path(doveconf: Doveconf) -> Path | None:
    """Where Dovecot reads our Lua script from; None where no passdb or userdb names it."""
    for block in (*doveconf.root.of("passdb"), *doveconf.root.of("userdb")):
        named = re.search(r"(?:^|\bfile=)(/\S+)", block.get("lua_file") or block.get("args"))
        if block.driver == "lua" and named and Path(named[1]).name == OUR_SCRIPT:
            return Path(named[1])
    return None


def _script(doveconf: Doveconf) -> dict[str, str] | None:
    path = script_path(doveconf)
    try:
        return read_script(path.read_text(encoding="utf-8")) if path else None
    except (OSError, UnicodeDecodeError):
        return None


def read_script(text: str) -> dict[str, str]:
    """The constants of the Lua script that a site may change."""
    return dict(SCRIPT_CONSTANT.findall(text))
