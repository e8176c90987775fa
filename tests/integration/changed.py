"""A site that differs in one thing from what `deploy/` sets up, and what becomes of mail there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lmtp_atrest import config as config_module
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.doctor import refusals
from lmtp_atrest.doctor.facts import User, collect
from tests.integration.site import ALICE, MESSAGE, PASSWORD, USERS, deploy
from tests.peers.atrest import AtRest
from tests.peers.clients import swaks
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host

SCRIPT = "/etc/dovecot/lmtp-atrest.lua"
Edit = tuple[str, str]
LMTP_MESSAGE = b"Subject: canary-subject\n\nlmtp-canary\n"
CANARIES = (b"canary-subject", b"canary-body", b"lmtp-canary")


class ChangedSite:
    """The running site; alice is encrypted."""

    def __init__(self, dovecot: Dovecot, atrest: AtRest) -> None:
        self.dovecot, self.atrest, self.host = dovecot, atrest, dovecot.host
        self.config_path = atrest.shared / "doctor.yaml"
        self.configure()

    @property
    def config(self) -> Config:
        return config_module.load(self.config_path)

    def configure(self, **sections: dict[str, Any]) -> None:
        """What the command line is given: the site's file, and Dovecot's settings to look at."""
        settings = yaml.safe_load(self.atrest.config_path.read_text())
        doveconf = self.host.script(self.atrest.shared / "doveconf", "doveconf")
        settings["directory"]["doveconf"] = f"{doveconf} -n"
        for name, section in sections.items():
            settings[name] = settings.get(name, {}) | section
        self.config_path.write_text(yaml.safe_dump(settings))
        self.config_path.chmod(0o644)

    def refused(self, *others: str) -> set[str]:
        """What `account enable` would refuse because of the site, `others` left out."""
        home = str(self.dovecot.mail / ALICE)
        found = refusals(collect(self.config, [User(ALICE, home, f"{home}/Maildir")]))
        return {finding.name for finding in found} - set(others)

    def deliver(self, *, by_dovecot: bool = False) -> int:
        """One message to alice by either LMTP; the client's exit code."""
        port = self.dovecot.ports.lmtp if by_dovecot else self.atrest.port
        return swaks(self.host, "--to", ALICE, port=port, data=LMTP_MESSAGE).exit_code

    def append(self, folder: str = "INBOX") -> None:
        """Alice saves a message, and lists what is there."""
        client = self.dovecot.login(ALICE, PASSWORD)
        kind, data = client.append(folder, "", "", MESSAGE)
        assert kind == "OK", data
        client.select(folder)
        assert client.fetch("1:*", "(ENVELOPE BODYSTRUCTURE)")[0] == "OK"
        client.logout()

    def seen(self) -> int:
        """How many messages Dovecot shows alice in her INBOX."""
        client = self.dovecot.login(ALICE, PASSWORD)
        kind, data = client.select()
        client.logout()
        assert kind == "OK", data
        return int(data[0] or b"0")

    def in_clear(self, *more: Path) -> set[str]:
        """The files on disk that hold words of a message, by name."""
        paths = [path for root in (self.dovecot.mail, *more) for path in root.rglob("*")]
        return {
            path.name
            for path in paths
            if path.is_file() and any(word in path.read_bytes() for word in CANARIES)
        }


@contextmanager
def changed(
    host: Host,
    shared: Path,
    *edits: Edit,
    add: str = "",
    storage: str = "maildir:~/Maildir",
    user_field: str = "",
    curve: Curve = Curve.PRIME256V1,
    **unlock: Any,
) -> Iterator[ChangedSite]:
    """A site with `edits` in the snippet, settings to `add`, another `storage` or userdb field."""
    (shared / "run").mkdir()
    host.path("/run/lmtp-atrest").symlink_to(shared / "run")
    dovecot = Dovecot(host, shared, USERS)
    deploy(dovecot, storage=storage)
    script = shared / "lmtp-atrest.lua"  # where `doctor` outside of the root finds it too
    script.write_text(host.path(SCRIPT).read_text().replace("/run/lmtp-atrest", f"{shared}/run"))
    for before, after in ((SCRIPT, str(script)), *edits):
        assert before in dovecot.conf, before
        dovecot.conf = dovecot.conf.replace(before, after)
    dovecot.conf += add
    with dovecot:
        if user_field:
            rows = host.path("/etc/dovecot/users").read_text().splitlines()
            fields = "".join(f"{row.rstrip(':')}::::::userdb_{user_field}\n" for row in rows)
            host.write("/etc/dovecot/users", fields)
            dovecot.stop()
            dovecot.start()
        service = AtRest(shared, dovecot, **unlock)
        service.add(ALICE, PASSWORD, curve)
        with service:
            yield ChangedSite(dovecot, service)
