"""Dovecot's index caches in RAM: one directory for each account, below one root on tmpfs.

They hold headers and previews in clear, so they go when nobody needs them: with the last session,
on `lock`, at the start, and the longest unused first where all together pass the limit. Removing
one under a session was measured to be harmless: Dovecot logs a line and reads the mail again. The
root lies in a directory that everybody may write to, so no link is followed anywhere.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmtp_atrest.errors import TemporaryFailure, UsageError
from lmtp_atrest.telemetry import logger

log = logger("evict")

ACCOUNT_ID = re.compile(r"[0-9a-f]{32}")
BLOCK = 512  # the unit of st_blocks, whatever the file system's is


@dataclass(frozen=True, slots=True)
class Cache:
    """One account's cache: bytes of memory it takes, and when it was last written to."""

    account_id: str
    size: int
    written: float


def checked_account_id(text: str) -> str:
    """The text itself; UsageError for anything else than an account id."""
    if ACCOUNT_ID.fullmatch(text) is None:
        message = "account is not an account id"
        raise UsageError(message)
    return text


def remove_cache(root: Path, account_id: str) -> None:
    """Remove an account's directory below the cache root. Nothing there is no error."""
    with _opened(root) as directory:
        if directory is not None:
            # rmtree works by descriptors below `directory` and refuses a link as its start.
            shutil.rmtree(checked_account_id(account_id), dir_fd=directory, onerror=_report)


def remove_all_caches(root: Path) -> None:
    """Remove every account's cache: at the start no vault is open, so none should be there."""
    for account_id in account_ids(root):
        remove_cache(root, account_id)


def account_ids(root: Path) -> list[str]:
    """The accounts that have a cache, sorted."""
    with _opened(root) as directory:
        return _account_ids(directory) if directory is not None else []


def _account_ids(directory: int) -> list[str]:
    return sorted(filter(ACCOUNT_ID.fullmatch, os.listdir(directory)))


def keep_below(root: Path, limit: int) -> list[str]:
    """Remove the caches that were written to least recently until all take `limit` bytes at most.

    Returns the accounts whose caches went.
    """
    found = sorted(_measured(root), key=lambda cache: cache.written)
    total = sum(cache.size for cache in found)
    removed = []
    for cache in found:
        if total <= limit:
            break
        remove_cache(root, cache.account_id)
        removed.append(cache.account_id)
        total -= cache.size
    return removed


def _measured(root: Path) -> Iterator[Cache]:
    with _opened(root) as directory:
        for account_id in _account_ids(directory) if directory is not None else ():
            size, written = 0, 0.0
            for _, _, names, fd in os.fwalk(account_id, dir_fd=directory):
                for status in filter(None, (_file_status(name, fd) for name in names)):
                    size += status.st_blocks * BLOCK
                    written = max(written, status.st_mtime)
            yield Cache(account_id, size, written)


def _file_status(name: str, directory: int) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:  # Dovecot replaces its files while we look
        return None
    return found if stat.S_ISREG(found.st_mode) else None


@contextmanager
def _opened(root: Path) -> Iterator[int | None]:
    """The root by its descriptor, None where it is not there; TemporaryFailure for a link."""
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        message = f"the cache root {root} is not a directory of ours: {error}"
        raise TemporaryFailure(message) from error
    try:
        yield directory
    finally:
        os.close(directory)


def _report(_function: Callable[..., object], path: str, cause: object) -> None:
    kind = cause[0] if isinstance(cause, tuple) else type(cause)
    if kind is not FileNotFoundError:
        log.error("cache not removed", path=path, cause=getattr(kind, "__name__", ""))
