"""The header of an encrypted message (Dovecot's stream, version 2), checked field by field.

    magic "CRYPTED" 03 07 | 02 | flags u32 | H u32 | cipher OID | digest OID | rounds u32
    | key block length u32 | 01 | key type u8 | key id 32 | R (u32 length) | wrapped key data
    (u32 length) | check digest (u32 length) | ciphertext from H on | GCM tag 16

Integers are big-endian. Each fault has an error class of its own, so that a report over a whole
Maildir says what is wrong with each file. No key is touched here and nothing is decrypted.
"""

from dataclasses import dataclass

from lmtp_atrest.errors import Damaged

MAGIC = b"CRYPTED\x03\x07"
VERSION = 2
FLAG_AEAD = 2
MAX_ROUNDS = 100_000
TAG_SIZE = 16
# One key of any kind fits: secp521r1 has 323 bytes, RSA-16384 has 2,174.
HEADER_LIMIT = 4096
KEY_TYPE_RSA, KEY_TYPE_EC = 1, 2
AES_256_GCM = bytes.fromhex("060960864801650304012e")
SHA_256 = bytes.fromhex("0609608648016503040201")


class FormatError(Damaged):
    """A file that is not, or no longer, a message sealed to us; each fault is a subclass."""


class NotEncrypted(FormatError):
    """The file does not begin with the magic: an ordinary message, or something else."""


class VersionOne(FormatError):
    """The old stream of Dovecot 2.2 without authentication: recognised, not opened."""


class ForeignVersion(FormatError):
    """A stream version nobody has specified."""


class ForeignFlags(FormatError):
    """Another kind of integrity than AEAD, or none; mail_crypt never writes it."""


class ForeignCipher(FormatError):
    """A cipher other than AES-256-GCM."""


class ForeignDigest(FormatError):
    """A digest other than SHA-256."""


class ForeignKeyType(FormatError):
    """A recipient key that is neither EC nor RSA."""


class SeveralKeys(FormatError):
    """Not exactly one recipient key; Dovecot itself cannot read such files."""


class BadRounds(FormatError):
    """PBKDF2 rounds of 0 (Dovecot aborts on it) or beyond MAX_ROUNDS."""


class BadLength(FormatError):
    """Length fields that contradict each other or what the format allows."""


class Truncated(FormatError):
    """The file ends inside the header or before a whole tag."""


class TooLong(FormatError):
    """More bytes than the caller's limit, or than one GCM operation allows."""


class WrongKey(FormatError):
    """The message was sealed to another key; its key id says which."""


class BadKeyData(FormatError):
    """The wrapped key data does not unwrap with the key that the key id names."""


class BadCheckDigest(FormatError):
    """The key data unwrapped, but is not what the check digest was made of."""


class BadTag(FormatError):
    """The tag does not fit: the body was cut, extended or changed; GCM cannot tell which."""


class ChangedMeanwhile(FormatError):
    """The file changed between the pass that verified it and the pass that gives it out."""


@dataclass(frozen=True, slots=True)
class Header:
    """All of a message that is not ciphertext. `length` is where the ciphertext begins (H)."""

    version: int
    length: int
    rounds: int
    key_type: int
    key_id: bytes
    ephemeral: bytes
    wrapped: bytes
    check_digest: bytes
    raw: bytes


def is_sealed(prefix: bytes) -> bool:
    """Whether a file that begins so is an encrypted message. Hand over at least 9 bytes."""
    return prefix.startswith(MAGIC)


def parse_header(prefix: bytes) -> Header:
    """Read the header from the first HEADER_LIMIT bytes of a file, or from all of a shorter one.

    Raises the `FormatError` subclass of the first fault. Every length is checked against every
    other: an accepted header has one reading only (dcrypt-format, sections 1 and 2).
    """
    if not is_sealed(prefix):
        message = "the file does not begin with the magic of an encrypted message"
        raise NotEncrypted(message)
    fields = _Fields(prefix, len(MAGIC))
    _check_version(fields.take(1)[0])
    flags, length = fields.number(), fields.number()
    if flags != FLAG_AEAD:
        message = f"flags {flags:#x}; only {FLAG_AEAD:#x} (AEAD) is supported"
        raise ForeignFlags(message)
    if not fields.offset < length <= HEADER_LIMIT:
        message = f"header length {length} is impossible; at most {HEADER_LIMIT} is"
        raise BadLength(message)
    if len(prefix) < length:
        message = f"the file ends within its header of {length} bytes"
        raise Truncated(message)
    return _parse_algorithms(_Fields(prefix[:length], fields.offset, inside=True))


def _check_version(version: int) -> None:
    if version == 1:
        message = "version 1 stream: not authenticated, so not opened here; Dovecot still reads it"
        raise VersionOne(message)
    if version != VERSION:
        message = f"stream version {version}; only {VERSION} is known"
        raise ForeignVersion(message)


def _parse_algorithms(fields: "_Fields") -> Header:
    if (cipher := fields.oid()) != AES_256_GCM:
        message = f"cipher with OID {cipher.hex()}; only AES-256-GCM is supported"
        raise ForeignCipher(message)
    if (digest := fields.oid()) != SHA_256:
        message = f"digest with OID {digest.hex()}; only SHA-256 is supported"
        raise ForeignDigest(message)
    rounds = check_rounds(fields.number())
    if (block := fields.number()) != fields.left:
        message = f"key block of {block} bytes where the header has {fields.left}"
        raise BadLength(message)
    return _parse_key(fields, rounds)


def _parse_key(fields: "_Fields", rounds: int) -> Header:
    if (keys := fields.take(1)[0]) != 1:
        message = f"{keys} recipient keys; exactly one is supported, by Dovecot too"
        raise SeveralKeys(message)
    if (key_type := fields.take(1)[0]) not in (KEY_TYPE_RSA, KEY_TYPE_EC):
        message = f"recipient key of type {key_type}; 2 (EC) and 1 (RSA) are known"
        raise ForeignKeyType(message)
    header = Header(
        VERSION,
        fields.end,
        rounds,
        key_type,
        key_id=fields.take(32),
        ephemeral=fields.string(),
        wrapped=fields.string(),
        check_digest=fields.string(),
        raw=fields.whole,
    )
    # Short check digests pass in Dovecot before 2.4.3, which compares on the shorter length.
    sizes_fit = key_type == KEY_TYPE_RSA or len(header.wrapped) == 64
    if fields.left or len(header.check_digest) != 32 or not sizes_fit:
        message = "the fields of the key block do not have the lengths the format gives them"
        raise BadLength(message)
    return header


def check_rounds(rounds: int) -> int:
    """The number itself if a message may have it. Raises `BadRounds`."""
    if not 1 <= rounds <= MAX_ROUNDS:
        message = f"{rounds} PBKDF2 rounds; 1 to {MAX_ROUNDS} are allowed"
        raise BadRounds(message)
    return rounds


class _Fields:
    """A cursor over the header: short reads are `Truncated`, or `BadLength` inside a whole one."""

    def __init__(self, data: bytes, offset: int, *, inside: bool = False) -> None:
        self.whole = data
        self.end = len(data)
        self.offset = offset
        self._inside = inside

    @property
    def left(self) -> int:
        return self.end - self.offset

    def take(self, size: int) -> bytes:
        if size > self.left:
            message = f"a field of {size} bytes where {self.left} are left of the header"
            raise BadLength(message) if self._inside else Truncated(message)
        self.offset += size
        return self.whole[self.offset - size : self.offset]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def oid(self) -> bytes:
        # Other OIDs are shorter or longer: the length byte decides, so the error names them whole.
        start = self.take(2)
        if start[0] != 0x06 or start[1] > 127:
            message = f"an object identifier was expected, not {start.hex()}"
            raise BadLength(message)
        return start + self.take(start[1])
