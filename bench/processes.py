"""What the kernel counts of processes: time and memory."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
KIB = 1024


def tree(first: int) -> list[int]:
    """A process and all below it."""
    return [first, *(pid for child in children(first) for pid in tree(child))]


def children(parent: int) -> list[int]:
    """The children of a process, whichever of its threads started them."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time with all threads, also ended ones, and children waited for."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            # Behind the name, which may hold anything: utime, stime, cutime, cstime.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * TICK


def memory(pid: int, name: str) -> int:
    """A size of /proc/<pid>/status in bytes: `VmRSS`, or `VmHWM`, its peak since the reset."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    return 0


def reset_peak(pid: int) -> None:
    """Make `VmHWM` begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def busy_share(seconds: float) -> float:
    """The share of all processors that was in use during so many seconds from now."""
    before = _all_ticks()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip(before, _all_ticks(), strict=True))
    return 1 - idle / total


def _all_ticks() -> tuple[int, int]:
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]  # idle, and waiting for the disk
