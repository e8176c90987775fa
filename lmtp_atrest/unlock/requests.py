"""What may be asked of the unlock service, and of whom: one class for each operation.

`docs/unlock-protocol.md` says what each does. A field without a default must be given. How fields
travel is `protocol.py`'s.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from lmtp_atrest.secret import Secret


class Role(StrEnum):
    """A socket and what may be asked there; `evict` is a process of its own."""

    DOVECOT = "dovecot"
    READER = "reader"
    CONVERT = "convert"
    PORTAL = "portal"
    ADMIN = "admin"
    EVICT = "evict"


@dataclass(frozen=True, slots=True)
class Login:
    """Dovecot logs a user in."""

    name: str
    service: str
    mechanism: str
    site_verified: bool
    secret: Secret | None = None
    master: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class AppLogin:
    """Dovecot asks about an app password before the site's own passdb."""

    name: str
    secret: Secret
    service: str = ""
    mechanism: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Dovecot asks for the public half: deliveries, doveadm."""

    name: str


@dataclass(frozen=True, slots=True)
class Open:
    """A reader logs a user in."""

    name: str
    secret: Secret
    source: str


@dataclass(frozen=True, slots=True)
class Keys:
    """A reader asks for the private keys."""

    token: str


@dataclass(frozen=True, slots=True)
class Unwrap:
    """A reader asks for the key of one message; `header` is the message's dcrypt header."""

    token: str
    header: bytes


@dataclass(frozen=True, slots=True)
class Renew:
    """A reader says that its user is still there."""

    token: str


@dataclass(frozen=True, slots=True)
class Lock:
    """A reader ends the open vault of its user."""

    token: str


@dataclass(frozen=True, slots=True)
class Status:
    """How the service does."""


@dataclass(frozen=True, slots=True)
class SessionList:
    """Which vaults are open."""


@dataclass(frozen=True, slots=True)
class SessionLock:
    """End one account's open vault and its readers."""

    name: str


@dataclass(frozen=True, slots=True)
class PortalSignIn:
    """The portal asks whether this is the account's password; nothing stays open."""

    name: str
    secret: Secret
    source: str


@dataclass(frozen=True, slots=True)
class PortalOverview:
    """The portal shows a user that it signed in how the user's own account stands."""

    name: str


@dataclass(frozen=True, slots=True)
class AccountAdd:
    """Make a plain account; the site's own home and Maildir where none are given."""

    name: str
    home: str = ""
    maildir: str = ""


@dataclass(frozen=True, slots=True)
class AccountEnable:
    """Encrypt an account's mail from now on."""

    name: str
    secret: Secret
    mail_to: str = ""


@dataclass(frozen=True, slots=True)
class AccountCode:
    """A new recovery code; the one before is spent."""

    name: str
    secret: Secret
    mail_to: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountRecover:
    """A new password by the recovery code, and a new code; `at_site`, the site takes it too."""

    name: str
    code: Secret
    new_secret: Secret
    compromised: bool = False
    source: str = ""
    at_site: bool = False


@dataclass(frozen=True, slots=True)
class AccountPassword:
    """Another password, here and at the site, by the present one."""

    name: str
    secret: Secret
    new_secret: Secret
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountPasswordAbort:
    """The password change under way does not take place."""

    name: str


@dataclass(frozen=True, slots=True)
class AccountJoin:
    """The site's present password takes over what an older secret opens."""

    name: str
    new_secret: Secret
    secret: Secret
    by: str = "password"
    compromised: bool = False
    accept_admin: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountReset:
    """A new vault and key pair where nothing opens the old one, which is kept."""

    name: str
    new_secret: Secret


@dataclass(frozen=True, slots=True)
class AccountRotate:
    """A new key pair and vault key."""

    name: str
    secret: Secret
    compromised: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountDisable:
    """Store new mail plain again; or, `undo`, go on encrypting it after all."""

    name: str
    secret: Secret
    undo: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountFreeze:
    """No vault of this account opens any more; of all accounts where no name is given."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class AccountThaw:
    """Vaults open again, by the recovery code or the password."""

    name: str
    secret: Secret
    by: str = "code"
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountSuspend:
    """App passwords do not count, or count again."""

    name: str
    suspended: bool = True


@dataclass(frozen=True, slots=True)
class AccountAdmin:
    """Whether the admin recovery password opens this account, by its owner's word."""

    name: str
    secret: Secret
    wanted: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class AccountKey:
    """Encrypt to these certificates of the owner's, of this kind; without a kind, to none.

    `certificates` are OpenPGP certificates one after the other, or a PEM file.
    """

    name: str
    kind: str = ""
    certificates: bytes = b""


@dataclass(frozen=True, slots=True)
class AppPasswordAdd:
    """An app password more."""

    name: str
    secret: Secret
    label: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class AppPasswordRemove:
    """An app password less; with the account's password the rekey comes at once."""

    name: str
    handle: str
    secret: Secret | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class AdminSet:
    """The first admin recovery password."""

    secret: Secret


@dataclass(frozen=True, slots=True)
class AdminStatus:
    """How far admin recovery reaches."""


@dataclass(frozen=True, slots=True)
class AdminChange:
    """Another admin recovery password, or, `new_key`, another key too."""

    secret: Secret
    new_secret: Secret
    new_key: bool = False


@dataclass(frozen=True, slots=True)
class AdminResetPassword:
    """A user's new password by admin recovery; the mail stays as it is."""

    name: str
    secret: Secret
    new_secret: Secret


@dataclass(frozen=True, slots=True)
class AdminLeave:
    """Store a user's new mail plain again, by admin recovery: decryption can follow."""

    name: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class AdminExport:
    """A user's private keys by admin recovery, sealed to a passphrase."""

    name: str
    secret: Secret
    passphrase: Secret


@dataclass(frozen=True, slots=True)
class ConvertGrant:
    """A grant for a conversion, by the password, the recovery code or admin recovery.

    `count` is a decimal number: how many message keys it may ask for.
    """

    name: str
    secret: Secret
    direction: str
    count: str
    by: str = "password"


@dataclass(frozen=True, slots=True)
class ConvertUnwrap:
    """A conversion asks for the key of one message."""

    grant: str
    header: bytes


@dataclass(frozen=True, slots=True)
class ConvertDone:
    """A conversion found nothing encrypted any more: an account that is leaving is plain."""

    grant: str


@dataclass(frozen=True, slots=True)
class BackupRows:
    """The digests of the rows of one account, or of a page of accounts after this id."""

    name: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class BackupSeal:
    """The site's signature under a backup manifest; `lines` is a decimal number."""

    lines: str
    digest: str


@dataclass(frozen=True, slots=True)
class ConvertProgress:
    """The convert service tells how far it is; decimal numbers, `updated` in milliseconds."""

    account: str
    state: str
    encrypted: str
    left: str
    failed: str
    updated: str


@dataclass(frozen=True, slots=True)
class AuditList:
    """What was done by admin recovery."""


@dataclass(frozen=True, slots=True)
class AccountList:
    """All accounts."""


@dataclass(frozen=True, slots=True)
class AccountShow:
    """One account and its slots."""

    name: str


@dataclass(frozen=True, slots=True)
class AccountRename:
    """Give an account another login name."""

    name: str
    new: str


@dataclass(frozen=True, slots=True)
class AccountAlias:
    """Add a name to an account, or take it away."""

    name: str
    alias: str
    remove: bool = False


@dataclass(frozen=True, slots=True)
class AccountRemove:
    """Remove an account; its closed vault is kept."""

    name: str


@dataclass(frozen=True, slots=True)
class Who:
    """Ask the evict helper who is in."""

    name: str


@dataclass(frozen=True, slots=True)
class End:
    """Ask the evict helper to end a user's sessions and to remove the cache in RAM."""

    name: str
    account: str


@dataclass(frozen=True, slots=True)
class Caches:
    """Ask the evict helper which accounts have an index cache in RAM, after this id."""

    after: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """Ask the evict helper to remove an account's index cache."""

    account: str


DovecotRequest: TypeAlias = Login | AppLogin | Lookup
ReaderRequest: TypeAlias = Open | Keys | Unwrap | Renew | Lock
AdminRequest: TypeAlias = (
    Status
    | SessionList
    | SessionLock
    | AccountAdd
    | AccountEnable
    | AccountCode
    | AccountRecover
    | AccountPassword
    | AccountPasswordAbort
    | AccountJoin
    | AccountReset
    | AccountRotate
    | AccountDisable
    | AccountFreeze
    | AccountThaw
    | AccountSuspend
    | AccountAdmin
    | AccountKey
    | AppPasswordAdd
    | AppPasswordRemove
    | AdminSet
    | AdminStatus
    | AdminChange
    | AdminResetPassword
    | AdminLeave
    | AdminExport
    | AuditList
    | BackupRows
    | BackupSeal
    | AccountList
    | AccountShow
    | AccountRename
    | AccountAlias
    | AccountRemove
)
PortalRequest: TypeAlias = PortalSignIn | PortalOverview
ConvertRequest: TypeAlias = ConvertGrant | ConvertUnwrap | ConvertDone | ConvertProgress
EvictRequest: TypeAlias = Who | End | Caches | Forget
Request: TypeAlias = (
    DovecotRequest | ReaderRequest | PortalRequest | AdminRequest | ConvertRequest | EvictRequest
)

_D = frozenset({Role.DOVECOT, Role.ADMIN})
_R = frozenset({Role.READER, Role.ADMIN})
_A = frozenset({Role.ADMIN})
_C = frozenset({Role.CONVERT, Role.ADMIN})
_E = frozenset({Role.EVICT})
_P = frozenset({Role.PORTAL, Role.ADMIN})

OPERATIONS: dict[str, tuple[type[Request], frozenset[Role]]] = {
    "login": (Login, _D),
    "app-login": (AppLogin, _D),
    "lookup": (Lookup, _D),
    "open": (Open, _R),
    "keys": (Keys, _R),
    "unwrap": (Unwrap, _R),
    "renew": (Renew, _R),
    "lock": (Lock, _R),
    "portal-sign-in": (PortalSignIn, _P),
    "portal-overview": (PortalOverview, _P),
    "status": (Status, _A),
    "session-list": (SessionList, _A),
    "session-lock": (SessionLock, _P),
    "account-add": (AccountAdd, _A),
    "account-enable": (AccountEnable, _P),
    "account-code": (AccountCode, _P),
    "account-recover": (AccountRecover, _P),
    "account-password": (AccountPassword, _P),
    "account-password-abort": (AccountPasswordAbort, _A),
    "account-join": (AccountJoin, _P),
    "account-reset": (AccountReset, _A),
    "account-rotate": (AccountRotate, _A),
    "account-disable": (AccountDisable, _P),
    "account-freeze": (AccountFreeze, _P),
    "account-thaw": (AccountThaw, _P),
    "account-suspend": (AccountSuspend, _A),
    "account-admin": (AccountAdmin, _P),
    "account-key": (AccountKey, _A),
    "app-password-add": (AppPasswordAdd, _P),
    "app-password-remove": (AppPasswordRemove, _P),
    "admin-set": (AdminSet, _A),
    "admin-status": (AdminStatus, _A),
    "admin-change": (AdminChange, _A),
    "admin-reset-password": (AdminResetPassword, _A),
    "admin-leave": (AdminLeave, _A),
    "admin-export": (AdminExport, _A),
    "audit-list": (AuditList, _A),
    "backup-rows": (BackupRows, _A),
    "backup-seal": (BackupSeal, _A),
    "convert-grant": (ConvertGrant, _A),
    "convert-unwrap": (ConvertUnwrap, _C),
    "convert-done": (ConvertDone, _C),
    "convert-progress": (ConvertProgress, _C),
    "account-list": (AccountList, _A),
    "account-show": (AccountShow, _A),
    "account-rename": (AccountRename, _A),
    "account-alias": (AccountAlias, _A),
    "account-remove": (AccountRemove, _A),
    "who": (Who, _E),
    "end": (End, _E),
    "caches": (Caches, _E),
    "forget": (Forget, _E),
}
OPERATION_NAMES = {kind: name for name, (kind, _) in OPERATIONS.items()}
