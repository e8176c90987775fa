"""Private keys of accounts: made at enrolment, read when a vault is open, never seen by delivery.

`lmtp`, `delivery`, `maildir` and `directory` must not import this module, also through others;
import-linter checks it. What `dcrypt` needs for opening (`agree`, `decrypt_rsa`) it takes from
whatever has those methods.
"""

from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x448, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from lmtp_atrest.crypto.publickey import Curve, Ephemeral, PublicKey
from lmtp_atrest.errors import Damaged, WrongSecret
from lmtp_atrest.secret import Secret

AnyPrivate = (
    ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey | x448.X448PrivateKey | rsa.RSAPrivateKey
)
# dcrypt-format, section 4: OAEP with SHA-1 in both places. It is not used as a collision-free
# hash there, and only files that a Dovecot wrote to an RSA key are opened with it.
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKey:
    """One private key and its public half; `repr` shows nothing of it."""

    public: PublicKey
    _key: AnyPrivate

    @classmethod
    def generate(cls, curve: Curve) -> "PrivateKey":
        """Make a new key pair of a curve we seal to. Raises `UsageError` for any other."""
        return cls._of(Ephemeral.fresh(curve).private)

    @classmethod
    def from_pem(cls, pem: bytes, password: Secret | None = None) -> "PrivateKey":
        """Read a private key PEM; a password that is not needed is an error too.

        Raises `WrongSecret` for a password that is missing, needless or wrong, else `Damaged`.
        """
        try:
            return cls._of(load_pem_private_key(pem, password.reveal() if password else None))
        except TypeError as error:
            raise WrongSecret(str(error)) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            if password:  # the library cannot tell a wrong password from a damaged file
                message = "this password does not open the private key PEM"
                raise WrongSecret(message) from error
            message = "not a usable private key PEM"
            raise Damaged(message) from error

    @classmethod
    def from_der(cls, der: Secret) -> "PrivateKey":
        """Read an unencrypted PKCS#8 DER, as the vault holds it. Raises `Damaged`."""
        try:
            return cls._of(load_der_private_key(der.reveal(), None))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            message = "not a usable PKCS#8 private key"
            raise Damaged(message) from error

    @classmethod
    def _of(cls, key: object) -> "PrivateKey":
        if not isinstance(key, AnyPrivate):
            message = "a private key of an unsupported kind: EC, X25519, X448 or RSA fits"
            raise Damaged(message)
        return cls(PublicKey.of(key.public_key()), key)

    @property
    def key_id(self) -> bytes:
        """The id by which messages name this key."""
        return self.public.key_id

    def der(self) -> Secret:
        """PKCS#8 DER, unencrypted: for the vault, which seals it."""
        return Secret(self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))

    def encrypted_pem(self, password: Secret) -> bytes:
        """PKCS#8 PEM under a one-time password, as Dovecot takes it (dcrypt-format, section 7).

        PBES2 with AES-256-CBC and 2,048 rounds of PBKDF2 (0.5 ms): the password must be random
        and of 128 bits or more, never a person's.
        """
        return self._key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.reveal())
        )

    def agree(self, ephemeral: bytes) -> Secret:
        """S of dcrypt-format section 4 for the stored point R. Raises `Damaged`."""
        try:
            match self._key:
                case x25519.X25519PrivateKey() as key:
                    return Secret(
                        key.exchange(x25519.X25519PublicKey.from_public_bytes(ephemeral))
                    )
                case x448.X448PrivateKey() as key:
                    return Secret(key.exchange(x448.X448PublicKey.from_public_bytes(ephemeral)))
                case ec.EllipticCurvePrivateKey() as key:
                    # Checks that R is on the curve: no invalid-curve attack on the key.
                    point = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, ephemeral)
                    return Secret(key.exchange(ec.ECDH(), point))
        except ValueError as error:
            message = "the ephemeral point does not fit the key's curve"
            raise Damaged(message) from error
        message = "an RSA key has no key agreement"
        raise Damaged(message)

    def decrypt_rsa(self, wrapped: bytes) -> Secret:
        """Undo RSA-OAEP (SHA-1), as Dovecot wraps for RSA keys. Raises `Damaged`."""
        if not isinstance(self._key, rsa.RSAPrivateKey):
            message = "the key is not an RSA key"
            raise Damaged(message)
        try:
            return Secret(self._key.decrypt(wrapped, _OAEP))
        except ValueError as error:
            message = "the RSA-wrapped key data does not open"
            raise Damaged(message) from error
