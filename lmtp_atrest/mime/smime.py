"""S/MIME (RFC 8551) by `cryptography`: enveloped-data for RSA certificates.

What this library writes is AES-256-CBC without authentication, with the key transported by RSA
PKCS#1 v1.5: who can change a stored message can change what its reader sees, or learn from how a
mail program reacts. Certificates with keys on curves cannot be encrypted to. So this is for mail
programs that need it; OpenPGP is the better choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import (
    PKCS7EnvelopeBuilder,
    PKCS7Options,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from lmtp_atrest.errors import Damaged

E = TypeVar("E", bound=x509.ExtensionType)

MINIMUM_RSA_BITS = 2048
_PEM = b"-----BEGIN"


@dataclass(frozen=True)
class SMIMECertificate:
    """A certificate, parsed once; what it says of itself."""

    data: bytes
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate."""
        return self.certificate.fingerprint(SHA256()).hex().upper()

    @property
    def user_ids(self) -> tuple[str, ...]:
        """The subject, and the mail addresses it is for."""
        found = _extension(self.certificate, x509.SubjectAlternativeName)
        mails = found.get_values_for_type(x509.RFC822Name) if found else []
        return (self.certificate.subject.rfc4514_string(), *mails)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The key's algorithm."""
        key = self.certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            return (f"RSA {key.key_size}",)
        if isinstance(key, ec.EllipticCurvePublicKey):
            return (f"EC {key.curve.name}",)
        return (type(key).__name__.removesuffix("PublicKey"),)

    @property
    def begins(self) -> datetime:
        """From when on it is valid."""
        return self.certificate.not_valid_before_utc

    @property
    def expires(self) -> datetime:
        """Until when it is valid."""
        return self.certificate.not_valid_after_utc

    @property
    def refusal(self) -> str:
        """Why mail cannot be encrypted to it, whatever the date; empty if it can."""
        key = self.certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            return "only RSA keys can be encrypted to"
        if key.key_size < MINIMUM_RSA_BITS:
            return f"its RSA key has fewer than {MINIMUM_RSA_BITS} bits"
        usage = _extension(self.certificate, x509.KeyUsage)
        if usage is not None and not usage.key_encipherment:
            return "its key usage does not allow encryption"
        extended = _extension(self.certificate, x509.ExtendedKeyUsage)
        purposes = ExtendedKeyUsageOID
        if extended is not None and not {
            purposes.EMAIL_PROTECTION,
            purposes.ANY_EXTENDED_KEY_USAGE,
        } & set(extended):
            return "it is not for mail"
        return ""


def read(raw: bytes) -> tuple[SMIMECertificate, ...]:
    """The certificates of a PEM file, or the one of a DER file; Damaged."""
    try:
        if _PEM in raw:
            found = x509.load_pem_x509_certificates(raw)
        else:
            found = [x509.load_der_x509_certificate(raw)]
    except ValueError as error:
        message = "this is no X.509 certificate in PEM or DER"
        raise Damaged(message) from error
    return tuple(parsed(one.public_bytes(Encoding.DER)) for one in found)


@lru_cache(1024)
def parsed(data: bytes) -> SMIMECertificate:
    """One certificate in DER; Damaged."""
    try:
        made = SMIMECertificate(data, x509.load_der_x509_certificate(data))
        _ = made.user_ids, made.algorithms, made.refusal  # parsed late, and may be damaged
    except ValueError as error:
        message = "the X.509 certificate is damaged"
        raise Damaged(message) from error
    return made


def encrypt(certificates: Sequence[SMIMECertificate], entity: bytes) -> bytes:
    """The DER of the enveloped message for all of them."""
    builder = PKCS7EnvelopeBuilder().set_data(entity).set_content_encryption_algorithm(AES256)
    for one in certificates:
        builder = builder.add_recipient(one.certificate)
    return builder.encrypt(Encoding.DER, [PKCS7Options.Binary])


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
