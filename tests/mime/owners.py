"""People who own a key of each kind, and the programs that open their mail."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import Message
from pathlib import Path

import pysequoia
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)

from lmtp_atrest.crypto.records import Kind

NOW = datetime.now(UTC).replace(microsecond=0)
PARAMETERS = b';\r\n hp="cipher"; protected-headers="v1"'
DEFAULT_TYPE = b'Content-Type: text/plain;\r\n protected-headers="v1"; hp="cipher"\r\n'
PRIVATE = rsa.generate_private_key(65537, 2048)  # once: it takes a while


class PGPOwner:
    """An owner of an OpenPGP key, who reads with Sequoia."""

    kind = Kind.OPENPGP

    def __init__(self, name: str = "alice", valid_seconds: int | None = None) -> None:
        self.key = pysequoia.Tsk.generate(
            f"{name} <{name}@example.org>", validity_seconds=valid_seconds
        )
        self.certificate = bytes(self.key.extract_certificate())

    def decrypt(self, stored: bytes) -> bytes:
        armored = pgp_payload(stored)
        opened = pysequoia.decrypt(decryptor=self.key.decryptor(), bytes=armored).bytes
        assert opened is not None
        return opened


class SMIMEOwner:
    """An owner of an S/MIME key, who reads with `cryptography`."""

    kind = Kind.SMIME

    def __init__(
        self,
        begins: datetime = NOW - timedelta(days=1),
        valid: timedelta = timedelta(days=365),
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = PRIVATE,
        *extensions: x509.ExtensionType,
    ) -> None:
        self.key = key
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Alice")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + valid)
            .add_extension(
                x509.SubjectAlternativeName([x509.RFC822Name("alice@example.org")]), critical=False
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        self._signed = builder.sign(key, SHA256())
        self.certificate = self._signed.public_bytes(Encoding.DER)
        self.pem = self._signed.public_bytes(Encoding.PEM)

    def private_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def decrypt(self, stored: bytes) -> bytes:
        der = parsed(stored).get_payload(decode=True)
        assert isinstance(der, bytes)
        assert isinstance(self.key, rsa.RSAPrivateKey)
        return pkcs7.pkcs7_decrypt_der(der, self._signed, self.key, [])


Owner = PGPOwner | SMIMEOwner


def parsed(stored: bytes) -> Message:
    return message_from_bytes(stored, policy=policy.compat32)


def pgp_payload(stored: bytes) -> bytes:
    """The armored part, after checking the frame around it (RFC 3156 4)."""
    outer = parsed(stored)
    assert outer.get_content_type() == "multipart/encrypted"
    assert outer.get_param("protocol") == "application/pgp-encrypted"
    parts = outer.get_payload()
    assert isinstance(parts, list)
    control, payload = parts
    assert isinstance(control, Message)
    assert isinstance(payload, Message)
    assert control.get_content_type() == "application/pgp-encrypted"
    assert str(control.get_payload()).strip() == "Version: 1"
    assert payload.get_content_type() == "application/octet-stream"
    return str(payload.get_payload()).encode()


def original(entity: bytes) -> bytes:
    """The message in a decrypted entity: what was added is taken away, nothing else touched."""
    start = 0
    while entity.startswith(b"HP-Outer: ", start):
        start = entity.index(b"\r\n", start) + 2
        while entity[start : start + 1] in (b" ", b"\t"):
            start = entity.index(b"\r\n", start) + 2
    text = entity[start:]
    if text.startswith(DEFAULT_TYPE):
        return text.removeprefix(DEFAULT_TYPE)
    return text.replace(PARAMETERS, b"", 1)


def program(name: str) -> str:
    """Where a program of this machine is; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: apt install gnupg openssl")
    return found


class GnuPG:
    """GnuPG with a home of its own."""

    def __init__(self, home: Path) -> None:
        self._gpg = [program("gpg"), "--homedir", str(home), "--batch", "--quiet"]
        self._gpg += ["--pinentry-mode", "loopback", "--passphrase", ""]
        self._home = home

    def __call__(self, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            [*self._gpg, *arguments], input=given, capture_output=True, check=True, timeout=60
        )
        return done.stdout

    def close(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self._home), "--kill", "all"], check=True, timeout=60
        )


def crlf(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
