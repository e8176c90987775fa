"""Unix users: services and conversions give root's rights up for the one that they need."""

import os
import pwd

from lmtp_atrest.errors import ConfigError


def find(name: str) -> pwd.struct_passwd:
    """The user; ConfigError where there is none of this name."""
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        message = f"user {name} does not exist: adduser --system --group {name}"
        raise ConfigError([message]) from error


def become(name: str | None) -> None:
    """Have the rights of this user and no others; nothing happens unless we are root."""
    if name is None or os.geteuid() != 0:
        return
    user = find(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
