"""What answers at this moment: the sockets of the services, and Dovecot's user look-up.

Unlike all other checks these connect to something; they give a sentence on what went wrong, or
None, and the judging is apart.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from lmtp_atrest import users
from lmtp_atrest.config import Config, Listener
from lmtp_atrest.directory import DovecotDirectory, Found
from lmtp_atrest.doctor.facts import Facts
from lmtp_atrest.doctor.findings import Finding, problem, warning
from lmtp_atrest.errors import AtRestError, ConfigError
from lmtp_atrest.site import enrolment_fault
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import Role

GREETING_SECONDS = 5.0
# Nobody's name: "not found" is an answer as good as any.
NOBODY = "lmtp-atrest-doctor@invalid"


def running(config: Config) -> Iterator[Finding]:
    """The services that `serve` runs: each socket greets."""
    for role in (Role.DOVECOT, Role.ADMIN):
        path = config.unlock.sockets / f"{role}.sock"
        if (trouble := greets_unlock(path, role)) is not None:
            yield problem(
                "unlock-down",
                f"the unlock service does not answer: {trouble}; while it is down nobody logs in",
                "start it, and look at its log",
            )
            break
    if config.mail.delivered_by == "dovecot":
        return
    for text in config.lmtp.listen:
        if (trouble := greets_lmtp(Listener.parse(text))) is not None:
            yield problem(
                "lmtp-down",
                f"no LMTP greeting on {text}: {trouble}; mail waits in the MTA's queue",
                "start it, and look at its log",
            )


def greets_unlock(path: Path, role: Role) -> str | None:
    """What is wrong with a socket of the unlock service."""
    try:
        SyncClient(path, role).close()
    except AtRestError as error:
        return str(error)
    return None


def greets_lmtp(listener: Listener) -> str | None:
    """What is wrong with an address that should greet with 220."""
    try:
        with _connected(listener) as connection:
            connection.settimeout(GREETING_SECONDS)
            greeting = connection.recv(512).decode(errors="replace")
            connection.sendall(b"QUIT\r\n")
    except OSError as error:
        return error.strerror or str(error)
    return None if greeting.startswith("220 ") else f"it says {greeting[:60].strip()!r}"


def _connected(listener: Listener) -> socket.socket:
    if not listener.path:
        return socket.create_connection((listener.host, listener.port), GREETING_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(listener.path)
    except BaseException:
        connection.close()
        raise
    return connection


def directory(facts: Facts) -> Iterator[Finding]:
    """Dovecot's user look-up, as delivery does it: under its user, with the names we know."""
    config = facts.config
    if config.directory.source != "dovecot":
        return
    name = facts.users[0].name if facts.users else NOBODY
    trouble = as_user(config.lmtp.user, lambda: look_up(config.directory.socket, name))
    if trouble is not None:
        yield problem(
            "directory",
            f"{config.lmtp.user or 'this user'} gets no answer from {config.directory.socket}: "
            f"{trouble}; mail for addresses without an account waits (451)",
            "open auth-userdb to that user with mode 0600 (deploy/dovecot), not with 0666",
        )
    asked = as_user(config.unlock.user, lambda: look_up(config.directory.socket, name))
    if asked is not None:
        yield warning(
            "directory-unlock",
            f"{config.unlock.user or 'this user'} gets no answer from {config.directory.socket}: "
            f"{asked}; app passwords do not count, and nobody new is enrolled at login",
            "open auth-userdb to the group of that user, too, with mode 0660 (deploy/dovecot)",
        )
    yield from names(facts)


def enrolment(config: Config) -> Iterator[Finding]:
    """Enrolment at login that cannot enrol anybody."""
    if (fault := enrolment_fault(config)) is not None:
        yield problem("enrolment", fault, "do one or the other, or set another atrest.enrolment")


def names(facts: Facts) -> Iterator[Finding]:
    """Accounts that Dovecot does not know, or knows by another name."""
    for user in facts.users:
        if user.answer is not None and user.answer.name != user.name:
            yield problem(
                "account-name",
                f"Dovecot knows {user.name} as {user.answer.name}: a login or delivery under that "
                "name is not known as encrypted",
                f"lmtp-atrest account alias {user.name} {user.answer.name}, or change "
                "auth_username_format",
            )


def look_up(path: Path, name: str) -> str:
    """Ask for one name; empty where there was an answer, "not found" included."""

    async def ask() -> Found | None:
        async with DovecotDirectory(path, GREETING_SECONDS) as asked:
            return await asked.lookup(name)

    try:
        asyncio.run(ask())
    except (AtRestError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def as_user(name: str | None, ask: Callable[[], str]) -> str | None:
    """Run `ask` in a child with the rights of this user; its sentence, None where it is empty."""
    if name is None or os.geteuid() != 0:
        return ask() or None
    try:
        users.find(name)
    except ConfigError:
        return f"user {name} does not exist"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            users.become(name)
            os.write(writing, ask().encode(errors="replace"))
            code = 0
        finally:
            os._exit(code)  # never back into the parent's code
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    if os.waitpid(child, 0)[1] != 0:
        return "the look-up broke off"
    return said or None
