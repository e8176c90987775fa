"""Slots: the vault key, sealed to one secret.

A slot is an HPKE recipient (RFC 9180, single shot, base mode) whose key pair is derived from the
secret: secret → Argon2id (none for generated secrets) → HKDF-SHA256 with the slot's context →
seed. The slot stores the public key and the vault key sealed to it. So a new vault key can be
sealed to every slot while only one secret is at hand, and the public key is the commitment: it is
derived and compared first, and a secret that does not fit never reaches a decryption.

Suite 1 is ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM. The bounds of the KDF belong to this
format, not to the configuration: a slot outside them is damaged, whoever wrote it.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_pwhash_alg, crypto_pwhash_ALG_ARGON2ID13

from lmtp_atrest.crypto.vault import KEY_BYTES, VaultKey
from lmtp_atrest.errors import Damaged, WrongSecret
from lmtp_atrest.secret import Secret

FORMAT = "lmtp-atrest slot 1"
SUITE_HYBRID = 1
MLKEM_SEED, X25519_SEED = 64, 32
MLKEM_PUBLIC, X25519_PUBLIC = 1184, 32
SALT_BYTES = 16
SLOT_ID_BYTES = 16
MEMORY_FLOOR, MEMORY_CEILING = 19 << 20, 1 << 30
PASSES_FLOOR, PASSES_CEILING = 2, 10
# What a suite-1 slot holds, to the byte: a KEM ciphertext, an X25519 share, the key and a tag.
SEALED_BYTES = 1088 + 32 + KEY_BYTES + 16

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SlotKind(StrEnum):
    """Whose secret opens the slot."""

    PASSWORD = "password"  # noqa: S105 - a name
    RECOVERY_CODE = "recovery-code"
    APP_PASSWORD = "app-password"  # noqa: S105 - a name
    ADMIN = "admin"


class SlotState(StrEnum):
    """A pending slot opens the vault too; it waits to replace an active one."""

    ACTIVE = "active"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a secret becomes key material: memory in bytes; 0 bytes and passes mean no Argon2id,
    for generated secrets of 128 bits and more.
    """

    memory: int
    passes: int
    salt: bytes

    @classmethod
    def argon2id(cls, memory: int, passes: int) -> "Kdf":
        """Argon2id with a fresh salt."""
        return cls(memory, passes, secrets.token_bytes(SALT_BYTES))

    @classmethod
    def for_generated_secret(cls) -> "Kdf":
        """No slow step, only a fresh salt."""
        return cls(0, 0, secrets.token_bytes(SALT_BYTES))

    @property
    def slow(self) -> bool:
        """True where deriving costs an Argon2id run."""
        return self.passes > 0

    def check(self) -> None:
        """Damaged unless the parameters lie within the format's bounds."""
        none = self.memory == 0 and self.passes == 0
        bounded = (
            MEMORY_FLOOR <= self.memory <= MEMORY_CEILING
            and PASSES_FLOOR <= self.passes <= PASSES_CEILING
        )
        if len(self.salt) != SALT_BYTES or not (none or bounded):
            message = f"slot with KDF parameters out of bounds: {self.memory} B, {self.passes}"
            raise Damaged(message)

    def derive(self, secret: Secret) -> Secret:
        """32 bytes from the secret; 64 MiB and 3 passes take about 90 ms without the GIL."""
        if not self.slow:
            return Secret(
                HKDF(SHA256(), 32, self.salt, b"lmtp-atrest kdf none").derive(secret.reveal())
            )
        return Secret(
            crypto_pwhash_alg(
                32,
                secret.reveal(),
                self.salt,
                self.passes,
                self.memory,
                crypto_pwhash_ALG_ARGON2ID13,
            )
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as it is stored. `digest()` covers every field."""

    slot_id: str
    account_id: str
    vault_id: str
    kind: SlotKind
    label: str
    state: SlotState
    created: int
    suite: int
    kdf: Kdf
    public_key: bytes
    sealed: bytes

    def digest(self) -> bytes:
        """SHA-256 over all fields, stored beside them to tell damage from a wrong secret."""
        fields: dict[str, Any] = asdict(self)
        fields["kdf"] = [self.kdf.memory, self.kdf.passes, self.kdf.salt.hex()]
        fields["public_key"], fields["sealed"] = self.public_key.hex(), self.sealed.hex()
        return hashlib.sha256(_encoded(FORMAT, fields)).digest()

    def check(self) -> None:
        """Damaged, before any KDF runs, where the fields cannot be those of a slot."""
        if self.suite != SUITE_HYBRID:
            message = f"slot {self.slot_id} has unknown suite {self.suite}"
            raise Damaged(message)
        if (len(self.public_key), len(self.sealed)) != (
            MLKEM_PUBLIC + X25519_PUBLIC,
            SEALED_BYTES,
        ):
            message = f"slot {self.slot_id} has lengths that no slot has"
            raise Damaged(message)
        _check_kdf(self.kind, self.kdf)

    def open(self, secret: Secret) -> VaultKey:
        """The vault key; WrongSecret if the secret is another one, Damaged if the slot is.

        Runs the KDF in the calling thread.
        """
        self.check()
        return self._opened_by(_key_pair(self.kdf.derive(secret), self))

    def open_as_admin(self, seed: VaultKey) -> VaultKey:
        """The same for a slot of admin recovery; `seed` is that of `admin_public_key`."""
        self.check()
        return self._opened_by(_admin_key_pair(seed))

    def _opened_by(self, key_pair: "_KeyPair") -> VaultKey:
        if not hmac.compare_digest(key_pair.public, self.public_key):
            message = f"the secret does not open slot {self.slot_id}"
            raise WrongSecret(message)
        try:
            return VaultKey(_SUITE.decrypt(self.sealed, key_pair.private, info=_info(self)))
        except (InvalidTag, ValueError) as error:
            message = f"slot {self.slot_id} does not open with its own secret"
            raise Damaged(message) from error

    def resealed(self, vault_key: VaultKey) -> "Slot":
        """The slot with another vault key inside; needs no secret."""
        self.check()
        return replace(self, sealed=_seal(vault_key, self))


@dataclass(frozen=True, slots=True)
class _KeyPair:
    private: MLKEM768X25519PrivateKey
    public: bytes


def make_slot(
    secret: Secret,
    vault_key: VaultKey,
    *,
    account_id: str,
    vault_id: str,
    kind: SlotKind,
    kdf: Kdf,
    created: int,
    label: str = "",
    state: SlotState = SlotState.ACTIVE,
    slot_id: str = "",
) -> Slot:
    """Seal the vault key to a secret; the KDF runs in the calling thread."""
    blank = Slot(
        slot_id=slot_id or secrets.token_hex(SLOT_ID_BYTES),
        account_id=account_id,
        vault_id=vault_id,
        kind=kind,
        label=label,
        state=state,
        created=created,
        suite=SUITE_HYBRID,
        kdf=kdf,
        public_key=b"",
        sealed=b"",
    )
    _check_kdf(kind, kdf)
    with_key = replace(blank, public_key=_key_pair(kdf.derive(secret), blank).public)
    return replace(with_key, sealed=_seal(vault_key, with_key))


def admin_public_key(seed: VaultKey) -> bytes:
    """The public half of the admin recovery key that grows from this seed."""
    return _admin_key_pair(seed).public


def make_admin_slot(
    public_key: bytes, vault_key: VaultKey, *, account_id: str, vault_id: str, created: int
) -> Slot:
    """Seal the vault key to the admin recovery key; needs its public half only.

    The key pair is the same in the slots of all accounts; what binds a slot to its account and
    vault is HPKE's `info`.
    """
    blank = Slot(
        slot_id=secrets.token_hex(SLOT_ID_BYTES),
        account_id=account_id,
        vault_id=vault_id,
        kind=SlotKind.ADMIN,
        label="",
        state=SlotState.ACTIVE,
        created=created,
        suite=SUITE_HYBRID,
        kdf=Kdf(0, 0, bytes(SALT_BYTES)),
        public_key=public_key,
        sealed=b"",
    )
    return replace(blank, sealed=_seal(vault_key, blank))


def decoy_slot(kdf: Kdf) -> Slot:
    """A slot that no secret opens, and that refuses one with the same work as a real slot."""
    return Slot(
        slot_id=secrets.token_hex(16),
        account_id=secrets.token_hex(16),
        vault_id=secrets.token_hex(16),
        kind=SlotKind.PASSWORD,
        label="",
        state=SlotState.ACTIVE,
        created=0,
        suite=SUITE_HYBRID,
        kdf=kdf,
        public_key=secrets.token_bytes(MLKEM_PUBLIC + X25519_PUBLIC),
        sealed=secrets.token_bytes(SEALED_BYTES),
    )


def digest_of(slots: tuple[Slot, ...]) -> bytes:
    """The digest over all slots of a vault that the account's signed record carries."""
    return hashlib.sha256(b"".join(sorted(slot.digest() for slot in slots))).digest()


def _check_kdf(kind: SlotKind, kdf: Kdf) -> None:
    kdf.check()
    if kind is SlotKind.PASSWORD and not kdf.slow:
        message = "a password slot without Argon2id: passwords have too few bits for that"
        raise Damaged(message)


def _seal(vault_key: VaultKey, slot: Slot) -> bytes:
    mlkem, x25519 = slot.public_key[:MLKEM_PUBLIC], slot.public_key[MLKEM_PUBLIC:]
    public = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(mlkem), X25519PublicKey.from_public_bytes(x25519)
    )
    return _SUITE.encrypt(vault_key.reveal(), public, info=_info(slot))


def _key_pair(derived: Secret, slot: Slot) -> _KeyPair:
    return _key_pair_from(derived, _context(slot))


def _admin_key_pair(seed: VaultKey) -> _KeyPair:
    return _key_pair_from(seed, b"lmtp-atrest admin recovery key 1")


def _key_pair_from(secret: Secret, context: bytes) -> _KeyPair:
    seed = HKDF(SHA256(), MLKEM_SEED + X25519_SEED, salt=None, info=context).derive(
        secret.reveal()
    )
    mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:MLKEM_SEED])
    x25519 = X25519PrivateKey.from_private_bytes(seed[MLKEM_SEED:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return _KeyPair(MLKEM768X25519PrivateKey(mlkem, x25519), public)


def _context(slot: Slot) -> bytes:
    """What a slot's key pair is bound to: it cannot be moved to another account, slot or kind."""
    kdf = [slot.kdf.memory, slot.kdf.passes, slot.kdf.salt.hex()]
    return _encoded(FORMAT, [slot.account_id, slot.slot_id, slot.kind.value, slot.suite, kdf])


def _info(slot: Slot) -> bytes:
    return _context(slot) + b"\n" + slot.vault_id.encode()


def _encoded(title: str, value: Any) -> bytes:
    return json.dumps([title, value], sort_keys=True, separators=(",", ":")).encode()
