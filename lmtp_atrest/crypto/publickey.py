"""Public keys that messages are encrypted to: the half that delivery may hold.

One canonical encoding (`spki`) is what records sign, what stores keep and what the key id hashes;
`pem()` is what Dovecot is given. Nothing here can open a message: private keys live in `keypair`,
which delivery never imports.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x448, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from lmtp_atrest.errors import Damaged, UsageError
from lmtp_atrest.secret import Secret

AnyPublic = (
    ec.EllipticCurvePublicKey | x25519.X25519PublicKey | x448.X448PublicKey | rsa.RSAPublicKey
)
EphemeralPrivate = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey


class Curve(StrEnum):
    """The kinds of key a message may be encrypted to, by OpenSSL's name."""

    PRIME256V1 = "prime256v1"
    SECP384R1 = "secp384r1"
    SECP521R1 = "secp521r1"
    SECP256K1 = "secp256k1"
    X25519 = "x25519"
    X448 = "x448"
    RSA = "rsa"


NAMED_CURVES: dict[Curve, ec.EllipticCurve] = {
    Curve.PRIME256V1: ec.SECP256R1(),
    Curve.SECP384R1: ec.SECP384R1(),
    Curve.SECP521R1: ec.SECP521R1(),
    Curve.SECP256K1: ec.SECP256K1(),
}
# What new keys and new messages may use; the others are opened only, as Dovecot's own files.
SEALING_CURVES = (Curve.PRIME256V1, Curve.SECP384R1, Curve.SECP521R1, Curve.X25519)

# RFC 5480: id-ecPublicKey, and the named curves of section 2.1.1.1 (SEC 2 for secp256k1).
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_CURVE_OIDS = {
    Curve.PRIME256V1: bytes.fromhex("06082a8648ce3d030107"),
    Curve.SECP384R1: bytes.fromhex("06052b81040022"),
    Curve.SECP521R1: bytes.fromhex("06052b81040023"),
    Curve.SECP256K1: bytes.fromhex("06052b8104000a"),
}
_OPENSSL_NAMES = {curve.name: name for name, curve in NAMED_CURVES.items()}


def curve_of(key: object) -> Curve:
    """The kind of a parsed key, public or private. Raises `Damaged` for any other kind."""
    match key:
        case ec.EllipticCurvePublicKey() | ec.EllipticCurvePrivateKey():
            if key.curve.name in _OPENSSL_NAMES:
                return _OPENSSL_NAMES[key.curve.name]
        case x25519.X25519PublicKey() | x25519.X25519PrivateKey():
            return Curve.X25519
        case x448.X448PublicKey() | x448.X448PrivateKey():
            return Curve.X448
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            return Curve.RSA
    message = f"a key of an unsupported kind ({type(key).__name__}): EC, X25519, X448 or RSA fits"
    raise Damaged(message)


@dataclass(frozen=True, slots=True, repr=False)
class Ephemeral:
    """A private key for one message, on the recipient's curve; two uses would link messages."""

    curve: Curve
    private: EphemeralPrivate

    @classmethod
    def fresh(cls, curve: Curve) -> "Ephemeral":
        """Make one from the system's randomness. Raises `UsageError` for a curve we only open."""
        if curve not in SEALING_CURVES:
            message = f"messages are not sealed to {curve} keys; use {', '.join(SEALING_CURVES)}"
            raise UsageError(message)
        if curve is Curve.X25519:
            return cls(curve, x25519.X25519PrivateKey.generate())
        return cls(curve, ec.generate_private_key(NAMED_CURVES[curve]))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A recipient's public key; `spki` is DER with named curve and compressed point."""

    curve: Curve
    spki: bytes

    @classmethod
    def from_pem(cls, pem: bytes) -> "PublicKey":
        """Read a `PUBLIC KEY` PEM in any point encoding. Raises `Damaged`."""
        try:
            return cls.of(load_pem_public_key(pem))
        except (ValueError, UnsupportedAlgorithm) as error:
            message = f"not a usable public key PEM: {error}"
            raise Damaged(message) from error

    @classmethod
    def from_der(cls, der: bytes) -> "PublicKey":
        """Read a DER SubjectPublicKeyInfo in any point encoding. Raises `Damaged`."""
        try:
            return cls.of(load_der_public_key(der))
        except (ValueError, UnsupportedAlgorithm) as error:
            message = f"not a usable DER public key: {error}"
            raise Damaged(message) from error

    @classmethod
    def of(cls, key: object) -> "PublicKey":
        """The canonical form of a parsed key. Raises `Damaged` for a kind that is not ours."""
        curve = curve_of(key)
        return cls(curve, _canonical_spki(curve, key))  # type: ignore[arg-type]  # curve_of checked

    @property
    def key_id(self) -> bytes:
        """SHA-256 of `spki`: how a message names its recipient (dcrypt-format, section 3)."""
        return hashlib.sha256(self.spki).digest()

    def pem(self) -> bytes:
        """An ordinary SubjectPublicKeyInfo PEM, uncompressed point: what Dovecot takes."""
        return load_der_public_key(self.spki).public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    def encapsulate(self, ephemeral: Ephemeral | None = None) -> tuple[bytes, Secret]:
        """R and S of dcrypt-format section 4: the ephemeral point as stored, the raw ECDH output.

        A given `ephemeral` must be on this curve and of this one message. Raises `UsageError` for
        a curve that we only open, `Damaged` for a point that yields no secret.
        """
        own = Ephemeral.fresh(self.curve) if ephemeral is None else ephemeral
        try:
            return _exchange(own.private, _loaded(self.spki))
        except ValueError as error:  # X25519: a point of small order (RFC 7748, section 6.1)
            message = "this public key yields no shared secret"
            raise Damaged(message) from error


# The keys of those who get much mail stay loaded; they are public.
_loaded = lru_cache(maxsize=1024)(load_der_public_key)


def _exchange(private: EphemeralPrivate, public: object) -> tuple[bytes, Secret]:
    match private, public:
        case x25519.X25519PrivateKey(), x25519.X25519PublicKey():
            return private.public_key().public_bytes_raw(), Secret(private.exchange(public))
        case ec.EllipticCurvePrivateKey(), ec.EllipticCurvePublicKey():
            point = private.public_key().public_bytes(
                Encoding.X962, PublicFormat.UncompressedPoint
            )
            return point, Secret(private.exchange(ec.ECDH(), public))
    message = "the ephemeral key is of another kind than the recipient's key"
    raise ValueError(message)


def _canonical_spki(curve: Curve, key: AnyPublic) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # The library writes uncompressed points only, and the key id is over the compressed one.
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = _der(0x30, _EC_PUBLIC_KEY + _CURVE_OIDS[curve])
    return _der(0x30, algorithm + _der(0x03, b"\x00" + point))


def _der(tag: int, content: bytes) -> bytes:
    # One length byte is enough: the longest, a compressed secp521r1 key, has 88 bytes.
    return bytes((tag, len(content))) + content
