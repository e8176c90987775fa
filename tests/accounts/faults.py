"""Sites that fail, or end, at a step between the stores; and sites made fast by copying."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from nacl.bindings import crypto_pwhash_alg

from lmtp_atrest.crypto import slots as slots_module
from lmtp_atrest.crypto.records import SiteKey
from lmtp_atrest.keystore.store import StoreUnavailable
from tests.sites import CheapSite

# Memory, where there is: a sync costs nothing there. What syncs are worth is tested elsewhere.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
STEPS = ("vaults.change", "records.put", "pins.remember", "vaults.finished")
ADMIN_STEPS = (
    "audit.append",
    "vaults.put",
    "records.put_admin",
    "pins.remember_admin",
    "vaults.drop",
)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Fault:
    """One call of one step fails, before or after it was done; then all is as before."""

    step: str
    done: bool
    crash: bool
    fired: bool = False

    def arm(self, site: CheapSite, patch: pytest.MonkeyPatch) -> None:
        store, method = self.step.split(".")
        real = getattr(getattr(site, store), method)

        def failing(*arguments: Any, **keywords: Any) -> Any:
            if self.fired:
                return real(*arguments, **keywords)
            self.fired = True
            if self.done:
                real(*arguments, **keywords)
            raise Crash if self.crash else StoreUnavailable(self.step)

        patch.setattr(getattr(site, store), method, failing)


def cheapen(patch: pytest.MonkeyPatch) -> None:
    """Argon2id itself, but with the least memory that libsodium takes: 0.1 ms instead of 20."""

    def cheap(
        size: int, secret: bytes, salt: bytes, _passes: int, _memory: int, alg: int
    ) -> bytes:
        return crypto_pwhash_alg(size, secret, salt, 1, 8192, alg)

    patch.setattr(slots_module, "crypto_pwhash_alg", cheap)


class CopiedSite(CheapSite):
    """A site whose stores are there already."""

    def __init__(self, root: Path, key: SiteKey) -> None:
        self.root, self.key, self.public = root, key, key.public
        self.open()

    @classmethod
    def of(cls, root: Path, template: CheapSite) -> Self:
        """One with the content of another, whose stores are closed."""
        for file in template.root.glob("*.db"):
            shutil.copy(file, root)
        return cls(root, template.key)

    def content(self) -> dict[str, bytes]:
        """The stores as files, as a backup of a stopped site takes them."""
        self.close()
        return {file.name: file.read_bytes() for file in self.root.glob("*.db")}

    def put_back(self, content: dict[str, bytes]) -> None:
        """Restore these files in place of what is there."""
        self.close()
        for name, data in content.items():
            for tail in ("-wal", "-shm", "-journal"):
                (self.root / f"{name}{tail}").unlink(missing_ok=True)
            (self.root / name).write_bytes(data)
        self.open()
