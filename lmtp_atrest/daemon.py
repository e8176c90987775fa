"""The composition root: `serve` reads from top to bottom here.

One parent binds the LMTP sockets, forks the services and watches them; it opens no store and holds
no key. Each service is a process of its own: `lmtp` (as many as cores, on the same sockets),
`unlock`, `evict`, `convert`, `portal`. Started as root, each gives its rights up for the user
that the configuration names (`evict` keeps them: ending IMAP sessions needs root). A service that
dies is started again; one that cannot start because of the configuration or the stores' schema
ends the whole. Whatever else is wrong may pass: a store that is locked, or whose journal only
`unlock` may roll back.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtp_atrest import telemetry, users
from lmtp_atrest.accounts import Accounts, Settings
from lmtp_atrest.config import Config, Listener
from lmtp_atrest.conversion import States
from lmtp_atrest.conversion.background import Background, be_idle
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.crypto.records import SiteKey, SitePublic
from lmtp_atrest.delivery import Delivery
from lmtp_atrest.directory import directory_of
from lmtp_atrest.errors import AtRestError, ConfigError, UsageError
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.store import RECORDS, Store
from lmtp_atrest.keystore.vaults import Vaults
from lmtp_atrest.lmtp import server as lmtp_server
from lmtp_atrest.names import Names
from lmtp_atrest.portal import serving as portal
from lmtp_atrest.site import make_directory, stores
from lmtp_atrest.unlock import evict, serving
from lmtp_atrest.unlock.hardening import harden
from lmtp_atrest.unlock.telling import ProgressTeller

BACKLOG = 256
RESTART_SECONDS = 1.0
GARBAGE = 20_000  # new objects between two searches for it
# Longer than the drain of lmtp, which answers every dot that was already sent.
STOP_SECONDS = 35.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
ALL_SERVICES = {
    "lmtp-atrest": ("unlock", "evict", "lmtp", "convert", "portal"),
    "dovecot": ("unlock", "evict", "portal"),  # and mail that need not be a Maildir of ours
}
# See errors.py: faults that another try will not mend.
FINAL = (UsageError.exit_code, ConfigError.exit_code)

log = telemetry.logger("daemon")


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep running: what it does, and as which user (None: as whoever started us)."""

    name: str
    run: Callable[[], None]
    user: str | None = None


def serve(config: Config, only: Sequence[str] = ()) -> int:
    """Run the services until SIGTERM; the exit code.

    `only` picks some of lmtp, unlock, evict, convert, portal.
    """
    wanted = only or ALL_SERVICES[config.mail.delivered_by]
    services: list[Service] = []
    if "unlock" in wanted:
        services.append(Service("unlock", lambda: run_unlock(config), config.unlock.user))
    if "evict" in wanted and config.unlock.evict.socket is not None:
        services.append(Service("evict", lambda: run_evict(config)))
    if "convert" in wanted and config.conversion.background:
        services.append(Service("convert", lambda: run_convert(config), config.lmtp.user))
    if "portal" in wanted and config.portal.listen is not None:
        pages = bind(Listener.parse(config.portal.listen))
        services.append(Service("portal", lambda: run_portal(config, pages), config.portal.user))
    sockets: list[socket.socket] = []
    if "lmtp" in wanted:
        sockets = [bind(Listener.parse(text)) for text in config.lmtp.listen]
        lmtp = Service("lmtp", lambda: run_lmtp(config, sockets), config.lmtp.user)
        services += [lmtp] * config.lmtp.worker_count
    make_runtime_directories(config, wanted)
    log.info("serving", services=[service.name for service in services], listen=config.lmtp.listen)
    return Supervisor(services).run()


# ---- the services, each in its own process


def run_lmtp(config: Config, sockets: Sequence[socket.socket]) -> None:
    """One delivery worker. Messages pass through its memory in plain, so nobody may look in."""
    harden(lock_memory=False)
    site = SitePublic.load(config.site.public)
    store = Store(RECORDS, config.keystore.records, readonly=True)
    store.check_revision()
    records = Records(store, site)
    names = Names(config.names, config.lmtp.recipient_delimiter)
    delivery = Delivery(config, records, site, directory_of(config), names)
    _spare_the_collector()
    asyncio.run(_until_told(lambda stop: lmtp_server.serve(sockets, config.lmtp, delivery, stop)))
    delivery.close()
    store.close()


def _spare_the_collector() -> None:
    """What is loaded by now stays for good, and deliveries leave few cycles behind: to look for
    garbage every 700 objects, in all there is, took a twentieth of a delivery's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def run_unlock(config: Config) -> None:
    """The service that opens vaults."""
    missing = harden()  # before the first secret is read
    site_key = SiteKey.load(config.site.key)
    with stores(config) as opened:
        opened.check_revisions()
        accounts = Accounts(
            Records(opened.records, site_key.public),
            Vaults(opened.vaults),
            Pins(opened.pins),
            site_key,
            Settings(
                Curve(config.atrest.curve),
                config.atrest.argon2_memory,
                config.atrest.argon2_passes,
            ),
        )
        accounts.repair()
        asyncio.run(_until_told(lambda stop: serving.serve(config, accounts, stop, missing)))


def run_evict(config: Config) -> None:
    """The root helper that ends IMAP sessions."""
    asyncio.run(_until_told(lambda stop: evict.serve_evict(config, stop)))


def run_convert(config: Config) -> None:
    """Old mail of encrypted accounts, in the background; by public keys alone."""
    harden(lock_memory=False)  # mail passes through in plain
    be_idle()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    store = Store(RECORDS, config.keystore.records, readonly=True)
    store.check_revision()
    states = States(config.conversion.state)
    states.open()
    records = Records(store, SitePublic.load(config.site.public))
    tell = ProgressTeller(config.unlock.sockets)
    Background(config, records, states, stopping, tell=tell).run()
    tell.close()
    states.close()
    store.close()


def run_portal(config: Config, listening: socket.socket) -> None:
    """The web page for users. Passwords pass through its memory, so nobody may look in."""
    harden(lock_memory=False)
    asyncio.run(_until_told(lambda stop: portal.serve(config, listening, stop)))


async def _until_told(service: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await service(stopping)


# ---- what must exist before rights are given up


def bind(listener: Listener) -> socket.socket:
    """A listening socket; UsageError where the address is taken or not ours."""
    try:
        if listener.path:
            return _bind_unix(Path(listener.path))
        family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
        return socket.create_server((listener.host, listener.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = listener.path or f"{listener.host}:{listener.port}"
        message = f"cannot listen on {where}: {error.strerror}"
        raise UsageError(message) from error


def _bind_unix(path: Path) -> socket.socket:
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                message = f"another server listens on {path}"
                raise UsageError(message)
        path.unlink()  # left behind by a process that was killed
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    # Who may deliver is decided by the directory: the MTA's user is in no group of ours.
    path.chmod(0o666)
    listening.listen(BACKLOG)
    return listening


def make_runtime_directories(config: Config, wanted: Sequence[str]) -> None:
    """Directories below /run and /dev/shm, which are gone after a boot."""
    places = {
        "lmtp": [(config.lmtp.unclear_ends, config.lmtp.user, 0o700)],
        "unlock": [(config.unlock.sockets, config.unlock.user, 0o755)],
        "evict": [(config.unlock.cache_root, config.lmtp.user, 0o700)],
    }
    if config.unlock.evict.socket is not None:
        places["evict"].append((config.unlock.evict.socket.parent, None, 0o755))
    for service in wanted:
        for path, user, mode in places.get(service, []):
            if path.is_dir():
                continue
            make_directory(path, mode)
            if user is not None and os.geteuid() == 0:
                found = users.find(user)
                os.chown(path, found.pw_uid, found.pw_gid)


# ---- processes


class Supervisor:
    """Forks services, restarts what dies, passes SIGTERM on and waits."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._waiting = list(services)
        self._running: dict[int, Service] = {}
        self._stopping = False
        self._exit_code = 0

    def run(self) -> int:
        """Until SIGTERM, or until a service cannot start; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        deadline = None
        while True:
            while self._waiting and not self._stopping:
                self._start(self._waiting.pop())
            received = signal.sigtimedwait(WATCHED, 0.5)
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._stop("told to")
            self._reap()
            if self._stopping:
                deadline = deadline or time.monotonic() + STOP_SECONDS
                if not self._running:
                    return self._exit_code
                if time.monotonic() > deadline:
                    self._signal(signal.SIGKILL)

    def _start(self, service: Service) -> None:
        sys.stdout.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                code = _child(service, parent)
            except BaseException:  # the log cannot be written to
                code = 1
            os._exit(code)  # whatever happens, never back into the parent's code
        self._running[pid] = service

    def _reap(self) -> None:
        for pid, service in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                continue
            del self._running[pid]
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            log.error("service ended", service=service.name, exit_code=code)
            if code in FINAL:
                self._exit_code = code
                self._stop("a service cannot run")
                continue
            time.sleep(RESTART_SECONDS)
            self._waiting.append(service)

    def _stop(self, reason: str) -> None:
        if not self._stopping:
            log.info("stopping", reason=reason)
            self._stopping = True
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _child(service: Service, parent: int) -> int:
    """Everything a service process does; its exit code."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _raise_limits()
        users.become(service.user)
        # After the change of user, which clears it: nobody outlives a killed parent.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:  # else it was killed before it could be watched
            service.run()
    except AtRestError as error:
        log.error("cannot run", service=service.name, cause=str(error))
        return error.exit_code
    except BaseException as error:
        log.error("crashed", service=service.name, exc_info=error)
        return 1
    else:
        return 0


def _raise_limits() -> None:
    """As many descriptors as allowed (one for each recipient of a message), and locked memory."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.geteuid() == 0:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
