"""The message format on disk: Dovecot's encrypted stream, version 2: sealed and opened.

A message is one AES-256-GCM operation under key data made for it alone and wrapped to one public
key, so the tag stands at the very end and there is no random access (layout: `dcrypt_header`).
Opening therefore verifies first and gives out bytes after; nothing here hands out an unverified
byte, and nothing here can reach a private key: `unwrap` takes whatever has `agree`.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import AEADDecryptionContext, Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC, GCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.padding import PKCS7

from lmtp_atrest.crypto.checkdigest import check_digest
from lmtp_atrest.crypto.dcrypt_header import (
    AES_256_GCM,
    FLAG_AEAD,
    HEADER_LIMIT,
    KEY_TYPE_EC,
    KEY_TYPE_RSA,
    MAGIC,
    MAX_ROUNDS,
    SHA_256,
    TAG_SIZE,
    VERSION,
    BadCheckDigest,
    BadKeyData,
    BadLength,
    BadRounds,
    BadTag,
    ChangedMeanwhile,
    ForeignCipher,
    ForeignDigest,
    ForeignFlags,
    ForeignKeyType,
    ForeignVersion,
    FormatError,
    Header,
    NotEncrypted,
    SeveralKeys,
    TooLong,
    Truncated,
    VersionOne,
    WrongKey,
    check_rounds,
    is_sealed,
    parse_header,
)
from lmtp_atrest.crypto.publickey import Curve, Ephemeral, PublicKey
from lmtp_atrest.errors import Damaged, UsageError
from lmtp_atrest.secret import Secret

__all__ = [
    "GCM_LIMIT",
    "HEADER_LIMIT",
    "KEY_TYPE_EC",
    "KEY_TYPE_RSA",
    "MAGIC",
    "MAX_ROUNDS",
    "TAG_SIZE",
    "BadCheckDigest",
    "BadKeyData",
    "BadLength",
    "BadRounds",
    "BadTag",
    "ChangedMeanwhile",
    "ForeignCipher",
    "ForeignDigest",
    "ForeignFlags",
    "ForeignKeyType",
    "ForeignVersion",
    "FormatError",
    "Header",
    "MessageKey",
    "NotEncrypted",
    "Opener",
    "Sealer",
    "SealingMaterial",
    "SeveralKeys",
    "TooLong",
    "Truncated",
    "Unwrap",
    "VersionOne",
    "WrongKey",
    "check_rounds",
    "is_sealed",
    "open_bytes",
    "open_file",
    "parse_header",
    "seal",
    "unwrap",
]

# SP 800-38D, section 5.2.1.1: what one GCM operation may encrypt, in bytes.
GCM_LIMIT = 2**36 - 32
# Ciphertext a pass over a file holds at a time.
CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class MessageKey:
    """The 60 secret bytes of one message: AES key 32, IV 12, associated data 16."""

    secret: Secret

    def __post_init__(self) -> None:
        if len(self.secret) != 60:
            message = f"key data of {len(self.secret)} bytes instead of 60"
            raise BadKeyData(message)

    @classmethod
    def fresh(cls) -> "MessageKey":
        """New key data for one message, from the system's randomness."""
        return cls(Secret(os.urandom(60)))

    def split(self) -> tuple[bytes, bytes, bytes]:
        """AES key, IV, associated data (dcrypt-format, section 4)."""
        data = self.secret.reveal()
        return data[:32], data[32:44], data[44:]

    def check_digest(self) -> bytes:
        """The stored check value."""
        return check_digest(self.secret.reveal())


class Opener(Protocol):
    """What `unwrap` needs of a private key; `keypair.PrivateKey` is one."""

    @property
    def key_id(self) -> bytes:
        """The id of its public half."""
        ...

    def agree(self, ephemeral: bytes) -> Secret:
        """The raw ECDH secret with R. Raises `Damaged`."""
        ...

    def decrypt_rsa(self, wrapped: bytes) -> Secret:
        """The key data an RSA key wraps. Raises `Damaged`."""
        ...


def unwrap(header: Header, private_key: Opener, *, check_digest: bool = True) -> MessageKey:
    """The message's key, by the private key that its key id names.

    Without `check_digest` the tag alone tells a damaged header; in pure Python that spares 0.7 ms.
    Raises `WrongKey`, `BadKeyData`, `BadCheckDigest`.
    """
    if header.key_id != private_key.key_id:
        message = f"the message is sealed to key {header.key_id.hex()}, not to this one"
        raise WrongKey(message)
    try:
        if header.key_type == KEY_TYPE_RSA:
            key = MessageKey(private_key.decrypt_rsa(header.wrapped))
        else:
            shared = private_key.agree(header.ephemeral)
            key = MessageKey(_unwrap_cbc(header, shared))
    except FormatError:
        raise
    except Damaged as error:
        message = f"the key data does not unwrap: {error}"
        raise BadKeyData(message) from error
    if check_digest and not hmac.compare_digest(key.check_digest(), header.check_digest):
        message = "the check digest does not fit the key data"
        raise BadCheckDigest(message)
    return key


def _wrapping_cipher(shared: Secret, ephemeral: bytes, rounds: int) -> Cipher[CBC]:
    # CBC without a MAC is the format's; the check digest and the tag stand in for one.
    derived = PBKDF2HMAC(hashes.SHA256(), 48, ephemeral, rounds).derive(shared.reveal())
    return Cipher(AES256(derived[:32]), CBC(derived[32:]))


def _unwrap_cbc(header: Header, shared: Secret) -> Secret:
    cipher = _wrapping_cipher(shared, header.ephemeral, header.rounds).decryptor()
    padded = cipher.update(header.wrapped) + cipher.finalize()
    unpadder = PKCS7(128).unpadder()
    try:
        return Secret(unpadder.update(padded) + unpadder.finalize())
    except ValueError as error:
        message = "the key data has no right padding"
        raise BadKeyData(message) from error


# Whatever stands behind it: a private key in this process, or a socket that opens for us.
Unwrap = Callable[[Header], MessageKey]


class SealingMaterial:
    """The randomness of one message, made ahead or at need; it serves one `Sealer` only.

    The same key and IV under two messages would give both away, so a second use is refused, and so
    is one in another process than it was made in (a fork copies prepared material).
    """

    __slots__ = ("_ephemeral", "_key", "_pid", "curve", "digest")

    def __init__(self, ephemeral: Ephemeral, key: MessageKey) -> None:
        self.curve: Curve = ephemeral.curve
        self.digest = key.check_digest()
        self._ephemeral = ephemeral
        self._key: MessageKey | None = key
        self._pid = os.getpid()

    @classmethod
    def fresh(cls, curve: Curve) -> "SealingMaterial":
        """Material for a recipient on this curve. Raises `UsageError` if we only open it."""
        return cls(Ephemeral.fresh(curve), MessageKey.fresh())

    def take(self) -> tuple[Ephemeral, MessageKey]:
        """Hand out the secrets, once. Raises `UsageError` afterwards and in a forked process."""
        if self._key is None or self._pid != os.getpid():
            message = "sealing material serves one message of the process that made it"
            raise UsageError(message)
        key, self._key = self._key, None
        return self._ephemeral, key


class Sealer:
    """Encrypt one message as it comes: write `header`, then each `update`, then `finish`.

    Raises `BadRounds` and `UsageError` (curve, material) when made; `update` raises `TooLong`.
    """

    def __init__(
        self,
        public_key: PublicKey,
        rounds: int = 1,
        *,
        material: SealingMaterial | None = None,
    ) -> None:
        check_rounds(rounds)
        own = material or SealingMaterial.fresh(public_key.curve)
        ephemeral, key = own.take()
        self.header = _header(public_key, rounds, ephemeral, key, own.digest)
        self.size = 0
        secret, iv, associated = key.split()
        self._cipher = Cipher(AES256(secret), GCM(iv)).encryptor()
        self._cipher.authenticate_additional_data(associated)

    def update(self, data: bytes) -> bytes:
        """The ciphertext of the next part, of the same length. Releases the GIL while it works."""
        self.size += len(data)
        if self.size > GCM_LIMIT:
            message = f"a message of more than {GCM_LIMIT} bytes cannot be sealed"
            raise TooLong(message)
        return self._cipher.update(data)

    def finish(self) -> bytes:
        """The tag, which ends the file. No more `update` after it."""
        return self._cipher.finalize() + self._cipher.tag


def _header(
    public_key: PublicKey, rounds: int, ephemeral: Ephemeral, key: MessageKey, digest: bytes
) -> bytes:
    point, shared = public_key.encapsulate(ephemeral)
    padder = PKCS7(128).padder()
    padded = padder.update(key.secret.reveal()) + padder.finalize()
    cipher = _wrapping_cipher(shared, point, rounds).encryptor()
    wrapped = cipher.update(padded) + cipher.finalize()
    strings = b"".join(len(s).to_bytes(4, "big") + s for s in (point, wrapped, digest))
    block = bytes((1, KEY_TYPE_EC)) + public_key.key_id + strings
    length = len(MAGIC) + 9 + len(AES_256_GCM) + len(SHA_256) + 8 + len(block)
    start = MAGIC + struct.pack(">BII", VERSION, FLAG_AEAD, length)
    return start + AES_256_GCM + SHA_256 + struct.pack(">II", rounds, len(block)) + block


def seal(public_key: PublicKey, plaintext: bytes, rounds: int = 1) -> bytes:
    """A whole message in memory; raises what `Sealer` raises."""
    sealer = Sealer(public_key, rounds)
    return sealer.header + sealer.update(plaintext) + sealer.finish()


def open_bytes(sealed: bytes, unwrap: Unwrap, *, limit: int = GCM_LIMIT) -> bytes:
    """The plaintext of a whole file in memory, verified; no bytes at all are an empty message.

    Raises a `FormatError` for every other fault, `TooLong` for a plaintext over `limit` bytes. A
    file that was cut to 0 bytes cannot be told from an empty message here: `S=` of its name can.
    """
    if not sealed:
        return b""
    header = parse_header(sealed[:HEADER_LIMIT])
    _check_size(header, len(sealed), limit)
    key, iv, associated = unwrap(header).split()
    try:
        return AESGCM(key).decrypt(iv, memoryview(sealed)[header.length :], associated)
    except InvalidTag as error:
        raise _bad_tag() from error


def open_file(file: BinaryIO, unwrap: Unwrap) -> Iterator[bytes]:
    """The plaintext of a seekable file, verified whole before this returns; 256 KiB of it held.

    The first pass checks the tag and remembers a SHA-256 of each chunk of ciphertext (32 bytes
    for 256 KiB), the second decrypts only chunks with those digests. So every byte given out is
    one that was verified, whatever happens to the file in between: then the iterator stops with
    `ChangedMeanwhile` where the change begins, and what was given out is a true beginning, not
    the message. The caller keeps the file open and its offset alone until the iterator ends.
    Raises a `FormatError` for every fault; a file of 0 bytes is an empty message.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        return iter(())
    file.seek(0)
    header = parse_header(file.read(HEADER_LIMIT))
    body = _check_size(header, size, GCM_LIMIT)
    key = unwrap(header)
    digests = _verify(file, header, body, key)
    return _give_out(file, header, body, key, digests)


def _check_size(header: Header, size: int, limit: int) -> int:
    body = size - header.length - TAG_SIZE
    if body < 0:
        message = f"the file ends {-body} bytes before the end of an empty message's tag"
        raise Truncated(message)
    if body > min(limit, GCM_LIMIT):
        message = f"{body} bytes of plaintext, over the limit of {min(limit, GCM_LIMIT)}"
        raise TooLong(message)
    return body


def _verify(file: BinaryIO, header: Header, body: int, key: MessageKey) -> list[bytes]:
    decryptor, digests = _decryptor(key), []
    for chunk in _chunks(file, header.length, body):
        digests.append(hashlib.sha256(chunk).digest())
        decryptor.update(chunk)
    try:
        decryptor.finalize_with_tag(file.read(TAG_SIZE))
    except (InvalidTag, ValueError) as error:  # ValueError: a tag cut short meanwhile
        raise _bad_tag() from error
    return digests


def _give_out(
    file: BinaryIO, header: Header, body: int, key: MessageKey, digests: list[bytes]
) -> Iterator[bytes]:
    decryptor = _decryptor(key)
    for chunk, digest in zip(_chunks(file, header.length, body), digests, strict=True):
        if hashlib.sha256(chunk).digest() != digest:
            message = "the file changed while it was read"
            raise ChangedMeanwhile(message)
        yield decryptor.update(chunk)


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(CHUNK, size))
        if len(chunk) != min(CHUNK, size):  # a regular file gives all that it has
            message = "the file became shorter while it was read"
            raise ChangedMeanwhile(message)
        size -= len(chunk)
        yield chunk


def _decryptor(key: MessageKey) -> AEADDecryptionContext:
    secret, iv, associated = key.split()
    decryptor = Cipher(AES256(secret), GCM(iv)).decryptor()
    decryptor.authenticate_additional_data(associated)
    return decryptor


def _bad_tag() -> BadTag:
    return BadTag("the tag does not fit: the body was cut, extended or changed")
