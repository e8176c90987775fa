"""What the machine knows of each account: which secrets count, and which mail they must open."""

from dataclasses import dataclass, field

from lmtp_atrest.crypto.records import State
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.secret import Secret


@dataclass(frozen=True)
class Key:
    """A secret as its owner uses it; app passwords come with their handle."""

    kind: SlotKind
    secret: bytes
    handle: str = ""

    @property
    def typed(self) -> Secret:
        return Secret(self.secret)


@dataclass
class VaultModel:
    """A vault: what opens it, and the mail that it opens."""

    password: Key
    pending: Key | None = None
    code: Key | None = None
    apps: list[Key] = field(default_factory=list)
    unknown_apps: int = 0  # made by a call whose answer was lost
    admin: bool = False
    mail: list[bytes] = field(default_factory=list)

    def keys(self) -> list[Key]:
        """Every secret that must open it, the administrator's aside."""
        found = [self.password, self.pending, self.code, *self.apps]
        return [key for key in found if key is not None]

    def slots(self) -> int:
        return len(self.keys()) + self.unknown_apps + self.admin


@dataclass
class Person:
    """An account."""

    name: str
    account_id: str
    state: State = State.PLAIN
    present: VaultModel | None = None
    closed: list[VaultModel] = field(default_factory=list)
    frozen: bool = False
    refused: bool = False
    rekey_due: bool = False
    epoch: int = 1
    spent: list[Key] = field(default_factory=list)

    @property
    def vault(self) -> VaultModel:
        assert self.present is not None
        return self.present

    def vaults(self) -> list[VaultModel]:
        return [*([self.present] if self.present else []), *self.closed]

    def spend(self, *keys: Key | None) -> None:
        """These must never open anything again."""
        self.spent += [key for key in keys if key is not None]


@dataclass
class AdminModel:
    """Admin recovery of the site."""

    password: Secret | None = None
    policy: str = "allowed"
    spent: list[Secret] = field(default_factory=list)

    def may_open(self, person: Person) -> bool:
        """Whether a new vault of this account gets a slot."""
        if self.password is None or self.policy == "forbidden":
            return False
        return self.policy == "required" or not person.refused
