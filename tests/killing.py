"""Runs work in a child process, and kills it where it is about to change a file system."""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = 0x4200, 0x420E
# Stops at system calls are told from signals; threads are traced too; all end with the tracer.
OPTIONS = 0x1 | 0x8 | 0x100000
SYSCALL_STOP = signal.SIGTRAP | 0x80
ENTRY = 1
# What is not in it changes nothing that outlives a process: to die there is to die after the one
# before. write, truncate, rename, mkdir, link, unlink, mode, owner, times; other machines: all.
CHANGING = {
    "x86_64": {
        *(1, 18, 20, 76, 77, 82, 83, 84, 86, 87, 90, 91, 92, 93, 258, 260, 263, 264, 265, 268),
        *(277, 280, 285, 296, 316, 452),
    }
}.get(platform.machine(), set(range(512)))
OPENAT = 257  # x86_64; counts where it may make a file
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


def run_until(work: Callable[[], None], number: int) -> int:
    """Kill `work` just before its call `number`; how many calls it came to, all if it ended."""
    child = os.fork()
    if child == 0:
        _be_traced(work)
    os.waitpid(child, 0)
    _ptrace(PTRACE_SETOPTIONS, child, OPTIONS)
    _ptrace(PTRACE_SYSCALL, child, 0)
    seen = 0
    while True:
        thread, status = os.waitpid(-1, 0x40000000)  # __WALL: threads as well
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread != child:
                continue
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if not killed and os.waitstatus_to_exitcode(status):
                message = f"the work ended with {os.waitstatus_to_exitcode(status)}"
                raise RuntimeError(message)
            return seen
        if _is_change(thread, status):
            if seen == number:
                os.kill(child, signal.SIGKILL)
                continue
            seen += 1
        _go_on(thread, status)


def _be_traced(work: Callable[[], None]) -> None:
    try:
        LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)


def _is_change(thread: int, status: int) -> bool:
    if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != SYSCALL_STOP:
        return False
    info = ctypes.create_string_buffer(88)
    _ptrace(PTRACE_GET_SYSCALL_INFO, thread, len(info), ctypes.addressof(info))
    call, _directory, _name, flags = struct.unpack_from("=QQQQ", info.raw, 24)
    makes = call == OPENAT and flags & os.O_CREAT
    return info.raw[0] == ENTRY and bool(call in CHANGING or makes)


def _go_on(thread: int, status: int) -> None:
    """A signal of its own is given to it; the stops of tracing itself are not."""
    number = os.WSTOPSIG(status)
    own = 0 if number in (SYSCALL_STOP, signal.SIGTRAP, signal.SIGSTOP) else number
    LIBC.ptrace(PTRACE_SYSCALL, thread, None, own)  # it may have been killed meanwhile


def _ptrace(request: int, thread: int, address: int, data: int = 0) -> None:
    if request == PTRACE_SETOPTIONS:
        address, data = 0, address
    if LIBC.ptrace(request, thread, address, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
