"""OpenPGP by pysequoia, which this file alone imports: its API is young, and an extra.

Measured with 0.1.35: `encrypt` refuses revoked keys and such as cannot encrypt, but takes expired
ones, whole certificates as well as subkeys. So expiry is checked here, and expired subkeys are
taken out of the certificate that `encrypt` gets. Its errors carry the stack of the library: only
their first line goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lmtp_atrest.errors import ConfigError, Damaged

INSTALLED = find_spec("pysequoia") is not None
if TYPE_CHECKING or INSTALLED:
    from pysequoia import Cert
    from pysequoia import encrypt as encrypt_to
    from pysequoia.packet import Packet, PacketPile, SignatureType, Tag

    _SECRET = (Tag.SecretKey, Tag.SecretSubkey)

MISSING = "OpenPGP needs pysequoia: pip install 'lmtp-atrest[openpgp]'"
RSA = (1, 2)  # algorithm ids (RFC 9580 9.1)


@dataclass(frozen=True)
class _Subkey:
    """A subkey with its signatures, and what the newest binding says of it."""

    packets: tuple["Packet", ...]
    expires: datetime | None
    encrypts: bool


@dataclass(frozen=True)
class OpenPGPCertificate:
    """A certificate, parsed once; what it says of itself."""

    data: bytes
    fingerprint: str
    user_ids: tuple[str, ...]
    algorithms: tuple[str, ...]
    is_revoked: bool
    primary_expires: datetime | None
    _primary: tuple["Packet", ...]
    _subkeys: tuple[_Subkey, ...]

    @property
    def expires(self) -> datetime | None:
        """When there is nothing left that messages can be encrypted to; None: never."""
        ends = [subkey.expires for subkey in self._subkeys if subkey.encrypts]
        last = None if not ends or None in ends else max(end for end in ends if end)
        return min((end for end in (last, self.primary_expires) if end), default=None)

    def at(self, now: datetime) -> "Cert":
        """The certificate without subkeys that have expired."""
        alive = [s for s in self._subkeys if s.expires is None or s.expires > now]
        with _translated():
            return Cert.from_packets([*self._primary, *(p for s in alive for p in s.packets)])


def read(raw: bytes) -> tuple[OpenPGPCertificate, ...]:
    """The certificates of a file, armored or not; Damaged, ConfigError without pysequoia."""
    with _translated():
        return tuple(parsed(bytes(cert)) for cert in Cert.split_bytes(raw))


def holds_secret(raw: bytes) -> bool:
    """Whether a file holds a private key, which must not come here."""
    with _translated():
        return any(packet.tag in _SECRET for packet in PacketPile.from_bytes(raw))


@lru_cache(1024)
def parsed(data: bytes) -> OpenPGPCertificate:
    """One certificate in its binary form; Damaged, ConfigError without pysequoia."""
    with _translated():
        cert = Cert.from_bytes(data)
        groups: list[list[Packet]] = [[]]
        for packet in PacketPile.from_bytes(data):
            if packet.tag == Tag.PublicSubkey:
                groups.append([])
            groups[-1].append(packet)
        return OpenPGPCertificate(
            data=data,
            fingerprint=cert.fingerprint.upper(),
            user_ids=tuple(str(user_id) for user_id in cert.user_ids),
            algorithms=tuple(_algorithm(group[0]) for group in groups if group),
            is_revoked=cert.is_revoked,
            primary_expires=cert.expiration,
            _primary=tuple(groups[0]),
            _subkeys=tuple(_subkey(group) for group in groups[1:]),
        )


def encrypt(certificates: Sequence[OpenPGPCertificate], entity: bytes, now: datetime) -> bytes:
    """The armored message for all of them; Damaged where one cannot be encrypted to."""
    with _translated():
        recipients = [certificate.at(now) for certificate in certificates]
        armored: bytes = encrypt_to(recipients=recipients, bytes=entity)
        return armored.replace(b"\r\n", b"\n")


def _subkey(group: Sequence["Packet"]) -> _Subkey:
    key, *signatures = group
    bindings = [s for s in signatures if s.signature_type == SignatureType.SubkeyBinding]
    oldest = datetime.min.replace(tzinfo=UTC)
    binding = max(bindings, key=lambda s: s.signature_created or oldest, default=None)
    if binding is None:
        return _Subkey(tuple(group), None, encrypts=False)
    flags, valid, created = binding.key_flags, binding.key_validity_period, key.key_created
    expires = created + valid if valid and created else None
    encrypts = flags is not None and (flags.transport_encryption or flags.storage_encryption)
    return _Subkey(tuple(group), expires, encrypts)


def _algorithm(key: "Packet") -> str:
    """The algorithm of a key packet, with the size of an RSA modulus."""
    name = str(key.key_algorithm).removeprefix("PublicKeyAlgorithm.")
    body = key.body
    # Version 4 (RFC 9580 5.5.2): version, time of 4 bytes, algorithm, then the modulus' bits.
    if body[:1] == b"\x04" and body[5] in RSA:
        return f"RSA {int.from_bytes(body[6:8], 'big')}"
    return name


@contextmanager
def _translated() -> Iterator[None]:
    """What the library raises, as errors of ours."""
    if not INSTALLED:
        raise ConfigError([MISSING])
    try:
        yield
    except BaseException as error:
        # A panic of the library is no Exception, and must not end the worker.
        if not isinstance(error, RuntimeError | ValueError | TypeError) and (
            type(error).__name__ != "PanicException"
        ):
            raise
        first = str(error).partition("\n")[0]
        message = f"the OpenPGP certificate does not serve: {first}"
        raise Damaged(message) from error
