"""The site's own command that sets a user's password: secrets on its standard input only."""

import asyncio
import contextlib
import shlex

from lmtp_atrest.errors import UsageError
from lmtp_atrest.secret import Secret
from lmtp_atrest.telemetry import logger

SECONDS = 30.0

log = logger("unlock")


async def run_password_command(command: str, name: str, old: Secret, new: Secret) -> bool | None:
    """True where the site took the new password, False where it did not, None where the command
    was cut short, so that either may be.

    `{name}` in the command stands for the user. The old and the new password are two lines of its
    input; UsageError where one holds a line end.
    """
    if any(b"\n" in secret.reveal() for secret in (old, new)):
        message = "a password with a line end in it cannot be handed to the site's command"
        raise UsageError(message)
    words = [word.replace("{name}", name) for word in shlex.split(command)]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd="/",
        )
    except OSError as error:
        log.error("password command cannot run", cause=error.strerror)
        return False
    try:
        async with asyncio.timeout(SECONDS):
            await process.communicate(old.reveal() + b"\n" + new.reveal() + b"\n")
    except TimeoutError:
        log.error("password command took too long", seconds=SECONDS)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return None
    code = process.returncode
    if code == 0:
        return True
    log.error("password command failed", exit_code=code)
    # Killed by a signal, nobody knows how far it came.
    return False if code is not None and code > 0 else None
