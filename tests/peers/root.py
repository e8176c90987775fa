"""Real mail servers for tests, each test in a throw-away copy of a root that `make peers` built.

A `Host` is a mount and a pid namespace over an overlay of the root. The root itself is never
written to; everything started in a `Host` ends with its first process, which ends with pytest.
The network is the machine's loopback, so callers take free ports; or one of its own, with
nothing but a loopback, where every server may listen on its usual port.
"""

import contextlib
import ctypes
import fcntl
import os
import shlex
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

ROOTS = Path(__file__).parents[2] / "var" / "peers"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Process 1 of the namespace reaps whatever is orphaned to it and ends with its standard input:
# when pytest is killed, the pipe closes and the kernel kills all the rest.
SETUP = r"""
set -e
root=$1 work=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t proc proc "$work/root/proc"
mount -t tmpfs -o mode=755 tmpfs "$work/root/run"
mount -t tmpfs -o mode=1777 tmpfs "$work/root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$work/root/dev/shm"
while [ $# -gt 0 ]; do
  mkdir -p "$work/root$2"
  mount --bind "$1" "$work/root$2"
  shift 2
done
exec chroot "$work/root" perl -e '$|=1; $SIG{CHLD}="IGNORE"; print "ready\n"; 1 while <STDIN>'
"""

CLONE_NEWNET = 0x40000000  # linux/sched.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h


def missing(suite: str) -> str | None:
    """Say in one line why the root of a suite cannot be used here; None when it can."""
    if os.geteuid() != 0 or not (ROOTS / suite / "peers-recipe").exists():
        return "no peers: sudo make peers"
    return None


class Host:
    """A running copy of a root; use it as a context manager, nothing is left after it.

    `shared` directories are seen inside under the same path; the first one must not be used by
    another `Host` at the same time. `mounts` are more of them, by the path they have inside.
    """

    def __init__(
        self,
        suite: str,
        *shared: Path,
        mounts: Mapping[str, Path] | None = None,
        own_network: bool = False,
    ) -> None:
        self.suite, self.shared = suite, [path.resolve() for path in shared]
        self._mounts = {**{str(path): path for path in self.shared}, **(mounts or {})}
        self._own_network = own_network
        self._work = self.shared[0] / f".{suite}"

    def __enter__(self) -> Self:
        self._work.mkdir()
        self._unshare = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
            + ["--net"] * self._own_network
            + ["sh", "-c", SETUP, "peers", str(ROOTS / self.suite), str(self._work)]
            + [text for inside, path in self._mounts.items() for text in (str(path), inside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != b"ready\n":
            self._end()
            raise RuntimeError("the namespace of a peer did not start")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._first = int(children.read_text().split()[0])
        self.namespace = Path(f"/proc/{self._first}/ns/pid").readlink()
        if self._own_network:
            with self.network(), socket.socket() as any_socket:
                up = struct.pack("16sh14x", b"lo", IFF_UP)
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, up)
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.close()  # process 1 ends, and the kernel ends its whole namespace
        self._unshare.wait(timeout=10)
        self._unshare.stdout.close()
        self._work.rmdir()

    def command(self, *args: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the command line that runs `args` inside, for callers outside this module."""
        settings = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})}
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--net"]
        enter += ["--root", "--wd"]
        return [*enter, "env", "-i", *(f"{k}={v}" for k, v in settings.items()), *args]

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread's new sockets are in the network of the host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/proc/{self._first}/ns/net").open() as inside,
        ):
            assert libc.setns(inside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), CLONE_NEWNET) == 0

    def script(self, path: Path, *args: str) -> Path:
        """Write an executable outside that runs `args` (and its own arguments) inside."""
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.command(*args))} "$@"\n')
        path.chmod(0o755)
        return path

    def run(
        self, *args: str, stdin: bytes = b"", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside and wait for it; with `check` a failure shows its output."""
        # Files, not pipes: a daemon keeps its starter's output open, and a pipe would not end.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            command = self.command(*args)
            status = subprocess.run(
                command, input=stdin, stdout=out, stderr=err, timeout=timeout, check=False
            ).returncode
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(command, status, out.read(), err.read())
        if check and status:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise AssertionError(f"{shlex.join(args)}: exit {status}\n{output}")
        return done

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside, making its directory."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text)
        self.path(path).chmod(mode)

    def path(self, path: str) -> Path:
        """Return where a path of the inside is reached from outside."""
        return Path(f"/proc/{self._first}/root{path}")

    def pids(self) -> list[int]:
        """List the processes of the namespace, without its first one."""
        return [pid for pid in pids_in(self.namespace) if pid != self._first]


def pids_in(namespace: Path) -> list[int]:
    """List the processes of a pid namespace, given as `/proc/<pid>/ns/pid` names it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns/pid").readlink() == namespace:
                found.append(int(entry.name))
    return found


def free_ports(count: int) -> list[int]:
    """Take loopback ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def attempts(what: str, seconds: float = 15, log: Path | None = None) -> Iterator[None]:
    """Yield until the caller breaks out; fails with `what` (and a log) when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-4000:] if log is not None and log.exists() else ""
    raise TimeoutError(f"waited {seconds} s in vain: {what}\n{tail}")


def wait_for_port(port: int, log: Path) -> None:
    """Wait until something listens on a loopback port; its log tells why it does not."""
    for _ in attempts(f"somebody listens on port {port}", log=log):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return


def settings(values: Mapping[str, object], separator: str = " = ") -> str:
    """Write settings the way Dovecot and Postfix read them, one a line."""
    return "".join(f"{name}{separator}{value}\n" for name, value in values.items())


def lines(output: bytes) -> Sequence[str]:
    """Split the output of a command."""
    return output.decode(errors="replace").splitlines()
