"""lmtp-atrest as it is installed: `serve` with its real processes, beside a `Host`."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import yaml

from lmtp_atrest import config as config_module
from lmtp_atrest import site
from lmtp_atrest.accounts import Accounts, Settings
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.crypto.records import SiteKey
from lmtp_atrest.crypto.slots import MEMORY_FLOOR, PASSES_FLOOR
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import Vaults
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import Request, Role
from tests.peers.dovecot import Dovecot
from tests.peers.root import attempts, free_ports, wait_for_port

# These users are in every Debian, on the host and in the root: the first owns the Maildirs, the
# second runs the unlock service.
MAIL_USER, UNLOCK_USER = "mail", "daemon"

# A Python below a closed directory (/root/.pyenv) cannot be read once `serve` gave up its rights.
# In a mount namespace of its own, an open directory takes the place of the closed one and holds
# only what is needed.
OPEN_UP = """
set -e
closed=$1 stash=$2 needed=$3; shift 3
mkdir "$stash"
mount --bind "$closed" "$stash"
mount -t tmpfs -o mode=755 tmpfs "$closed"
for path in $needed; do
  mkdir -p "$path"
  mount --bind "$stash${path#"$closed"}" "$path"
done
exec "$@"
"""


def for_all_users(stash: Path) -> list[str]:
    """Return the start of a command line under which every user can read this Python."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]}
    ways = [way for path in sorted(needed) for way in (*reversed(path.parents), path)]
    closed = next((way for way in ways if not way.stat().st_mode & 0o001), None)
    if closed is None:
        return []
    inside = " ".join(str(path) for path in sorted(needed) if path.is_relative_to(closed))
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, "sh", "-c", OPEN_UP, "peers", str(closed), str(stash), inside]


class AtRest:
    """One running lmtp-atrest, which asks a Dovecot who exists and ends sessions there."""

    def __init__(
        self,
        shared: Path,
        dovecot: Dovecot,
        lmtp: dict[str, Any] | None = None,
        mail: dict[str, Any] | None = None,
        **unlock: Any,
    ) -> None:
        self.shared, self.dovecot = shared, dovecot
        (self.port,) = free_ports(1)
        self.run, self.state = shared / "run", shared / "state"
        self.only: tuple[str, ...] = ()
        self.caches = dovecot.host.shared[-1] / "caches"
        self.log_path, self.config_path = shared / "serve.log", shared / "lmtp-atrest.yaml"
        self._write(self._settings(lmtp or {}, mail or {}, unlock))
        site.initialise(self.config)

    def _write(self, settings: dict[str, Any]) -> None:
        self.config_path.write_text(yaml.safe_dump(settings))
        self.config_path.chmod(0o644)
        self.config = config_module.load(self.config_path)

    def configure(self, **sections: dict[str, Any]) -> None:
        """Change settings, section by section; a running service has to be started again."""
        settings = yaml.safe_load(self.config_path.read_text())
        for name, section in sections.items():
            settings[name] = settings.get(name, {}) | section
        self._write(settings)

    def _settings(
        self, lmtp: dict[str, Any], mail: dict[str, Any], unlock: dict[str, Any]
    ) -> dict[str, Any]:
        doveadm = self.dovecot.host.script(self.shared / "doveadm", "doveadm")
        return {
            "lmtp": {
                "listen": [f"127.0.0.1:{self.port}"],
                "workers": 1,
                "user": MAIL_USER,
                "unclear_ends": str(self.run / "lmtp"),
                **lmtp,
            },
            "directory": {"socket": str(self.dovecot.sockets / "auth-userdb"), "doveconf": None},
            "mail": {"root": str(self.dovecot.mail), **mail},
            "keystore": {
                name: f"sqlite:///{self.state / group / name}.db"
                for name, group in (("records", "records"), ("vaults", "v"), ("pins", "v"))
            },
            "conversion": {"state": f"sqlite:///{self.state}/conversion/conversion.db"},
            "site": {"key": str(self.state / "site.key"), "public": str(self.state / "site.pub")},
            "atrest": {"argon2_memory": "19MiB", "argon2_passes": 2},
            "unlock": {
                "user": UNLOCK_USER,
                "sockets": str(self.run / "unlock"),
                "peers": {"dovecot": ["root"], "reader": ["root"], "admin": ["root"]},
                "cache_root": str(self.caches),
                "evict": {
                    "socket": str(self.run / "evict/evict.sock"),
                    "peers": [UNLOCK_USER],
                    "who": f"{doveadm} -f tab who",
                    "end": f"{doveadm} kick {{name}}",
                },
                **unlock,
            },
        }

    def add(
        self,
        name: str,
        password: str | None = None,
        curve: Curve = Curve.PRIME256V1,
        maildir: Path | None = None,
    ) -> str:
        """Add an account before the start, encrypted if a password is given; its id."""
        key = SiteKey.load(self.config.site.key)
        with site.stores(self.config) as opened:
            accounts = Accounts(
                Records(opened.records, key.public),
                Vaults(opened.vaults),
                Pins(opened.pins),
                key,
                Settings(curve, MEMORY_FLOOR, PASSES_FLOOR),
            )
            home = str(self.dovecot.mail / name)
            path = str(maildir or f"{home}/Maildir")
            account_id = accounts.add([name], home, path).account_id
            if password is not None:
                accounts.enable(name, Secret(password.encode()))
        return account_id

    def __enter__(self) -> Self:
        try:
            self.start(*self.only)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self.stop()

    def start(self, *only: str) -> None:
        """Start all services, or only these, and wait until they answer."""
        serve = ["-m", "lmtp_atrest", "serve", "--config", str(self.config_path)]
        serve += [f"--only={service}" for service in only]
        stash = self.shared / f"python-{time.monotonic_ns()}"
        command = [*for_all_users(stash), sys.executable, *serve]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        if not only or "lmtp" in only:
            wait_for_port(self.port, self.log_path)
        roles = ("dovecot", "admin") if not only or "unlock" in only else ()
        sockets = [self.run / f"unlock/{role}.sock" for role in roles]
        for _ in attempts("the sockets of the unlock service", log=self.log_path):
            if all(path.is_socket() for path in sockets):
                break

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._process.terminate()
        self._process.wait(timeout=40)

    def admin(self, request: Request) -> Reply:
        """Ask the admin socket, as the command line does."""
        with SyncClient(self.run / "unlock/admin.sock", Role.ADMIN) as client:
            return client.ask(request)

    def log(self) -> str:
        """Return the log so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""
