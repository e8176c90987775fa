"""Signed records: what is true of an account, signed by the site and checked by everybody.

A document is four lines of text, the same in the store and in the pin beside the mail:

    lmtp-atrest account record 1
    {"account_id":"…", … }                  canonical JSON: sorted keys, no blanks, ASCII
    signed-by 1f0c…                         which of the site's keys
    signature MEUC…                         Ed25519 over the first two lines

The first line is the domain tag: a signature under one title never counts under another. Delivery
holds public keys only; whoever can write to the store can therefore delete or replay a document,
which epochs and pins show (`check_pin`), but not make one.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from lmtp_atrest.errors import Alarm, AtRestError, ConfigError
from lmtp_atrest.secret import Secret

ACCOUNT_TITLE = "lmtp-atrest account record 1"
ADMIN_TITLE = "lmtp-atrest admin record 1"
MANIFEST_TITLE = "lmtp-atrest backup manifest seal 1"
PUBLIC_TITLE = "lmtp-atrest site public keys 1"
SECRET_TITLE = "lmtp-atrest site secret keys 1"  # noqa: S105 - a title


class State(StrEnum):
    """Where an account stands; only `encrypted` may be cached by delivery (DESIGN 5)."""

    PLAIN = "plain"
    ENCRYPTED = "encrypted"
    LEAVING = "leaving"
    REMOVED = "removed"


class Kind(StrEnum):
    """What new mail of an encrypted account is encrypted to.

    `mail_crypt`: the account's own key pair, whose private half lies in its vault. The others: the
    owner's certificates, whose private keys this site never has.
    """

    MAIL_CRYPT = "mail_crypt"
    OPENPGP = "openpgp"
    SMIME = "smime"


@dataclass(frozen=True, slots=True)
class VaultSeal:
    """What a record says of a vault: which one, what its key must be, and which slots it has.

    `key_ids` are those of the private keys in it, newest first.
    """

    vault_id: str
    commitment: bytes
    slots_digest: bytes
    key_ids: tuple[str, ...] = ()

    def body(self) -> list[Any]:
        """The seal as a document holds it."""
        return [
            self.vault_id,
            self.commitment.hex(),
            self.slots_digest.hex(),
            list(self.key_ids),
        ]

    @classmethod
    def from_body(cls, body: Any) -> Self:
        """The inverse of `body`; ValueError or TypeError where it does not fit."""
        vault_id, commitment, slots_digest, key_ids = body
        return cls(
            vault_id, bytes.fromhex(commitment), bytes.fromhex(slots_digest), tuple(key_ids)
        )


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as the site signed it. Bytes are hex in the document.

    `created` is in milliseconds since 1970 and orders accounts that followed each other in one
    Maildir; `epoch` grows with every change; `names[0]` is the login name. `closed` are earlier
    vaults that no slot of the present one opens. `admin_key` names the admin recovery key that
    opens the vault (empty: none does), `admin_refused` says that its owner wants none.
    `vault_key_since` (milliseconds) is when the vault key was last exchanged: older copies of the
    store open with secrets of their time. `rekey_due` asks the next login for a rekey,
    `reencrypt` the conversion for a run over all mail. `certificates` (base64 in the document) are
    what an account of another `kind` than mail_crypt encrypts to; such an account has a vault only
    if its mail was once encrypted to a key pair of its own.
    """

    site_id: str
    account_id: str
    epoch: int
    created: int
    names: tuple[str, ...]
    home: str
    maildir: str
    state: State
    public_key: bytes = b""
    key_ids: tuple[str, ...] = ()
    vault_id: str = ""
    vault_commitment: bytes = b""
    slots_digest: bytes = b""
    closed: tuple[VaultSeal, ...] = ()
    vault_key_since: int = 0
    admin_key: str = ""
    admin_refused: bool = False
    rekey_due: bool = False
    reencrypt: bool = False
    frozen: bool = False
    suspended: bool = False
    kind: Kind = Kind.MAIL_CRYPT
    certificates: tuple[bytes, ...] = ()

    @property
    def seal(self) -> VaultSeal:
        """What the record says of the present vault."""
        return VaultSeal(self.vault_id, self.vault_commitment, self.slots_digest, self.key_ids)

    @property
    def holds_ciphertext(self) -> bool:
        """True while messages may lie there that a login needs the keys of a vault for."""
        has_keys = self.kind is Kind.MAIL_CRYPT or bool(self.vault_id)
        return self.state in (State.ENCRYPTED, State.LEAVING) and has_keys

    @property
    def has_own_certificates(self) -> bool:
        """True where new mail is encrypted to certificates of the owner's."""
        return self.state is State.ENCRYPTED and self.kind is not Kind.MAIL_CRYPT

    def next(self, **changes: Any) -> "AccountRecord":
        """The record that follows this one."""
        return replace(self, epoch=self.epoch + 1, **changes)

    def body(self) -> dict[str, Any]:
        """The fields as the document holds them."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = value.hex() if isinstance(value, bytes) else value
        values["closed"] = [seal.body() for seal in self.closed]
        values["certificates"] = [base64.b64encode(one).decode() for one in self.certificates]
        if self.kind is Kind.MAIL_CRYPT and not self.certificates:
            # As programs from before certificates wrote and read it.
            del values["kind"], values["certificates"]
        return values

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `body`; ValueError or TypeError where it does not fit.

        A field that came later has its default in documents from before.
        """
        values = dict(body)
        for name in ("public_key", "vault_commitment", "slots_digest"):
            values[name] = bytes.fromhex(values[name])
        for name in ("names", "key_ids"):
            values[name] = tuple(values[name])
        values["closed"] = tuple(map(VaultSeal.from_body, values.get("closed", ())))
        values["state"] = State(values["state"])
        values["kind"] = Kind(values.get("kind", Kind.MAIL_CRYPT))
        values["certificates"] = tuple(
            base64.b64decode(one, validate=True) for one in values.get("certificates", ())
        )
        if values.pop("admin_policy", "none") != "none":
            message = "a policy that no program wrote"
            raise ValueError(message)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class AdminKey:
    """The admin recovery key: its public half, and the vault that holds the seed of the other."""

    public_key: bytes
    vault: VaultSeal

    @property
    def key_id(self) -> str:
        """A short name; accounts say by it which key opens them."""
        return _key_id(self.public_key)

    def body(self) -> list[Any]:
        """The key as a document holds it."""
        return [self.public_key.hex(), self.vault.body()]

    @classmethod
    def from_body(cls, body: Any) -> Self:
        """The inverse of `body`; ValueError or TypeError where it does not fit."""
        public_key, vault = body
        return cls(bytes.fromhex(public_key), VaultSeal.from_body(vault))


@dataclass(frozen=True, slots=True)
class AdminRecord:
    """What the site says about admin recovery; no key exists until one is set.

    `previous` is the key before a change, for as long as accounts still have slots of it.
    """

    site_id: str
    epoch: int
    policy: str
    key: AdminKey | None = None
    previous: AdminKey | None = None

    def next(self, **changes: Any) -> "AdminRecord":
        """The record that follows this one."""
        return replace(self, epoch=self.epoch + 1, **changes)

    def body(self) -> dict[str, Any]:
        """The fields as the document holds them."""
        keys = {"key": self.key, "previous": self.previous}
        return {
            "site_id": self.site_id,
            "epoch": self.epoch,
            "policy": self.policy,
            **{name: key.body() if key else None for name, key in keys.items()},
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `body`; ValueError, KeyError or TypeError where it does not fit."""
        values = dict(body)
        if values.pop("public_key", ""):
            message = "a key that no program wrote"
            raise ValueError(message)
        for name in ("key", "previous"):
            found = values.get(name)
            values[name] = AdminKey.from_body(found) if found is not None else None
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ManifestSeal:
    """What ends a backup manifest: the SHA-256 of its lines before, and how many there are."""

    site_id: str
    created: int
    lines: int
    digest: bytes

    def body(self) -> dict[str, Any]:
        """The fields as the document holds them."""
        return {
            "site_id": self.site_id,
            "created": self.created,
            "lines": self.lines,
            "digest": self.digest.hex(),
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `body`; ValueError, KeyError or TypeError where it does not fit."""
        return cls(**{**body, "digest": bytes.fromhex(body["digest"])})


R = TypeVar("R", AccountRecord, AdminRecord, ManifestSeal)


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record together with the document that proves it."""

    record: AccountRecord
    document: bytes


class BadDocument(Alarm):
    """A document is damaged, forged, or signed by a key that this site does not know."""


def canonical(body: Mapping[str, Any]) -> str:
    """JSON in the one form that is signed: sorted keys, no blanks, ASCII."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _key_line(name: str, raw: bytes) -> str:
    return f"key {name} {base64.b64encode(raw).decode()}"


def _split(document: bytes) -> tuple[bytes, str, dict[str, Any], str, bytes]:
    """Signed bytes, title, body, signer and signature of a document."""
    lines = document.decode("ascii").split("\n")
    title, text, signer, signature, end = lines
    if end or not signer.startswith("signed-by ") or not signature.startswith("signature "):
        message = "layout"
        raise ValueError(message)
    signed = f"{title}\n{text}\n".encode("ascii")
    return (
        signed,
        title,
        json.loads(text),
        signer.removeprefix("signed-by "),
        base64.b64decode(signature.removeprefix("signature "), validate=True),
    )


class SitePublic:
    """The site's id and the public keys whose signatures count."""

    def __init__(self, site_id: str, keys: Mapping[str, VerifyKey]) -> None:
        self.site_id = site_id
        self._keys = dict(keys)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `site.pub`; ConfigError where it is missing or unreadable."""
        site_id, keys = _read_key_file(path, PUBLIC_TITLE)
        return cls(site_id, {name: VerifyKey(raw) for name, raw in keys})

    def text(self) -> str:
        """The content of `site.pub`."""
        lines = [PUBLIC_TITLE, f"site {self.site_id}"]
        lines += [_key_line(name, bytes(key)) for name, key in self._keys.items()]
        return "\n".join(lines) + "\n"

    @property
    def key_names(self) -> tuple[str, ...]:
        """The ids of the keys that count, oldest first."""
        return tuple(self._keys)

    def verify(self, document: bytes) -> SignedRecord:
        """The account record that this document proves; BadDocument if it proves none."""
        record = self._verified(document, ACCOUNT_TITLE, AccountRecord.from_body)
        return SignedRecord(record, document)

    def verify_admin(self, document: bytes) -> AdminRecord:
        """The admin record that this document proves; BadDocument if it proves none."""
        return self._verified(document, ADMIN_TITLE, AdminRecord.from_body)

    def verify_manifest(self, document: bytes) -> ManifestSeal:
        """The seal of a backup manifest; BadDocument if this is none of this site."""
        return self._verified(document, MANIFEST_TITLE, ManifestSeal.from_body)

    def _verified(
        self, document: bytes, title: str, from_body: Callable[[Mapping[str, Any]], R]
    ) -> R:
        try:
            signed, found_title, body, signer, signature = _split(document)
            self._keys[signer].verify(signed, signature)
            record = from_body(body)
        except (ValueError, TypeError, KeyError, BadSignatureError) as error:
            message = f"a signed record is damaged or not of this site ({type(error).__name__})"
            raise BadDocument(message) from error
        if found_title != title or record.site_id != self.site_id:
            message = "a signed record is of another kind or another site"
            raise BadDocument(message)
        return record


class SiteKey:
    """The site's signing keys, newest last; only `unlock` and `init` hold them."""

    def __init__(self, site_id: str, seeds: tuple[Secret, ...]) -> None:
        self.site_id = site_id
        self._keys = tuple(SigningKey(seed.reveal()) for seed in seeds)

    @classmethod
    def generate(cls) -> Self:
        """A new site with one key."""
        return cls(secrets.token_hex(16), (Secret(secrets.token_bytes(32)),))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `site.key`; ConfigError where it is missing, unreadable or open to others."""
        if path.exists() and path.stat().st_mode & 0o077:
            raise ConfigError([f"{path}: others may read it; chmod 600 {path}"])
        site_id, keys = _read_key_file(path, SECRET_TITLE)
        return cls(site_id, tuple(Secret(raw) for _, raw in keys))

    def text(self) -> Secret:
        """The content of `site.key`."""
        lines = [SECRET_TITLE, f"site {self.site_id}"]
        lines += [_key_line(_key_id(bytes(key.verify_key)), bytes(key)) for key in self._keys]
        return Secret(("\n".join(lines) + "\n").encode())

    def with_new_key(self) -> "SiteKey":
        """The same site with one more key, which signs from now on."""
        seeds = (*(bytes(key) for key in self._keys), secrets.token_bytes(32))
        return SiteKey(self.site_id, tuple(Secret(seed) for seed in seeds))

    def only_newest(self) -> "SiteKey":
        """The same site without its older keys."""
        return SiteKey(self.site_id, (Secret(bytes(self._keys[-1])),))

    @property
    def public(self) -> SitePublic:
        """The public half."""
        keys = [key.verify_key for key in self._keys]
        return SitePublic(self.site_id, {_key_id(bytes(key)): key for key in keys})

    def sign(self, record: AccountRecord) -> SignedRecord:
        """The record with the newest key's signature."""
        return SignedRecord(record, self._document(ACCOUNT_TITLE, record.body()))

    def sign_admin(self, record: AdminRecord) -> bytes:
        """The admin record's document."""
        return self._document(ADMIN_TITLE, record.body())

    def sign_manifest(self, seal: ManifestSeal) -> bytes:
        """The seal's document."""
        return self._document(MANIFEST_TITLE, seal.body())

    def _document(self, title: str, body: Mapping[str, Any]) -> bytes:
        signed = f"{title}\n{canonical(body)}\n".encode("ascii")
        key = self._keys[-1]
        signature = base64.b64encode(key.sign(signed).signature).decode()
        signer = _key_id(bytes(key.verify_key))
        return signed + f"signed-by {signer}\nsignature {signature}\n".encode("ascii")


def _read_key_file(path: Path, title: str) -> tuple[str, list[tuple[str, bytes]]]:
    try:
        first, site, *rest = path.read_text(encoding="ascii").splitlines()
        keys = [line.split(" ") for line in rest]
        if first != title or not site.startswith("site ") or not keys:
            message = "layout"
            raise ValueError(message)
        return site.removeprefix("site "), [
            (name, base64.b64decode(raw, validate=True)) for _, name, raw in keys
        ]
    except FileNotFoundError as error:
        raise ConfigError([f"{path} is missing; `lmtp-atrest init` makes it"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: not a file of the kind '{title}'"]) from error


def check_pin(
    current: SignedRecord | None,
    pin: bytes | None,
    site: SitePublic,
    by_id: Callable[[str], SignedRecord | None],
) -> bool:
    """Compare the store's record with the newest one that was seen beside the mail.

    `current` is what the store says of the name (None: no account); `by_id` finds a record by
    account id, for accounts that were removed. Returns True where the pin is to be written anew,
    and raises Alarm where only an attack or a restored store explains what is seen: a lower epoch,
    another record of the same epoch, no record although there is a pin, a forged pin.
    """
    if pin is None:
        return current is not None and current.record.state in (State.ENCRYPTED, State.LEAVING)
    try:
        pinned = site.verify(pin).record
    except BadDocument:
        # Signed by a key that has been retired since: harmless once the record is at least as new.
        pinned = _claimed(pin)
        if current is None or current.record.account_id != pinned.account_id:
            raise
    if current is None:
        _check_removed(pinned, by_id(pinned.account_id))
        return False
    return _newer_than_pin(current, pinned, pin)


def _claimed(pin: bytes) -> AccountRecord:
    try:
        return AccountRecord.from_body(_split(pin)[2])
    except (ValueError, TypeError, KeyError, AtRestError) as error:
        message = "the pin beside the mail is damaged"
        raise BadDocument(message) from error


def _check_removed(pinned: AccountRecord, found: SignedRecord | None) -> None:
    if found is None:
        message = f"no record of account {pinned.account_id}, but a pin of epoch {pinned.epoch}"
        raise Alarm(message)
    if found.record.state is not State.REMOVED or found.record.epoch < pinned.epoch:
        message = f"this Maildir belongs to account {pinned.account_id}, under another name"
        raise Alarm(message)


def _newer_than_pin(current: SignedRecord, pinned: AccountRecord, pin: bytes) -> bool:
    record = current.record
    if record.account_id != pinned.account_id:
        if record.created <= pinned.created:
            message = f"account {record.account_id} is older than its Maildir's last owner"
            raise Alarm(message)
        return True
    if record.epoch < pinned.epoch:
        message = (
            f"account {record.account_id} is at epoch {record.epoch} in the store, "
            f"but {pinned.epoch} was seen: restored store or rollback"
        )
        raise Alarm(message)
    if record.epoch == pinned.epoch and record != pinned:
        message = f"two records of account {record.account_id} carry epoch {record.epoch}"
        raise Alarm(message)
    return current.document != pin
