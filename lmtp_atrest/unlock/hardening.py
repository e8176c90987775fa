"""Keep this process's memory to itself: no core dump, no debugger, no swap.

Best effort: what the system refuses is logged and told by `status`, because a service that does
not start protects nobody's mail. Must run before the first secret is read.
"""

import ctypes
import os
import resource
from collections.abc import Callable

from lmtp_atrest.telemetry import logger

PR_SET_DUMPABLE = 4  # linux/prctl.h
MCL_CURRENT, MCL_FUTURE = 1, 2  # asm-generic/mman.h


def harden(*, lock_memory: bool = True) -> list[str]:
    """Apply all three, or the first two; the names of those that could not be had."""
    steps: dict[str, Callable[[], None]] = {
        "core-limit": _no_core,
        "not-dumpable": _not_dumpable,
    }
    if lock_memory:
        steps["locked-memory"] = _lock_memory
    missing = []
    for name, step in steps.items():
        try:
            step()
        except (OSError, ValueError) as error:
            missing.append(name)
            logger("unlock").warning("hardening", missing=name, cause=str(error))
    return missing


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _not_dumpable() -> None:
    # Also closes /proc/PID/mem and ptrace to other processes of the same user.
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def _lock_memory() -> None:
    # With a limit below what Argon2id needs, MCL_FUTURE would fail every derivation later.
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:  # root too: a container's root may lack CAP_IPC_LOCK
        message = "RLIMIT_MEMLOCK is not unlimited"
        raise OSError(message)
    _call("mlockall", MCL_CURRENT | MCL_FUTURE)


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
