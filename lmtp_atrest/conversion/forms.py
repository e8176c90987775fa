"""One message from one form to another, checked before it may take the other's place."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt import (
    HEADER_LIMIT,
    Header,
    MessageKey,
    Sealer,
    SealingMaterial,
    Unwrap,
    is_sealed,
    parse_header,
)
from lmtp_atrest.crypto.publickey import Ephemeral, PublicKey
from lmtp_atrest.errors import Damaged, UsageError
from lmtp_atrest.maildir.exchange import Exchange

CHUNK = 256 * 1024
# Up to here a message is held whole while it is worked on; larger ones go through in chunks.
WHOLE_LIMIT = 1 << 20


class Direction(StrEnum):
    """What a run makes of messages. `rewrap` keeps a message's own key and seals that to the
    present key pair; `reseal` gives it a new one, as is needed after a compromise."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"
    REWRAP = "rewrap"
    RESEAL = "reseal"


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with each message, and with which keys."""

    direction: Direction
    public_key: PublicKey | None = None
    unwrap: Unwrap | None = None
    rounds: int = 1

    def is_done(self, first: bytes) -> bool:
        """Whether a message that begins so is in the wanted form. Raises `FormatError`."""
        sealed = is_sealed(first)
        match self.direction:
            case Direction.ENCRYPT:
                return sealed
            case Direction.DECRYPT:
                return not sealed
        # Plain mail is encrypted on the way.
        return sealed and parse_header(first).key_id == self._key.key_id

    def transform(self, exchange: Exchange) -> int:
        """Write the other form and check it; bytes of plaintext (of ciphertext for `rewrap`).

        Raises a `FormatError` for a message that does not open, StorageFailure, and Damaged where
        what was written does not read back as what was meant.
        """
        source = exchange.open()
        sealed = is_sealed(source.read(len(dcrypt.MAGIC)))
        source.seek(0)
        if not sealed:
            return _seal(exchange, _plain(source), self._key, self.rounds)
        match self.direction:
            case Direction.DECRYPT:
                return _decrypt(exchange, _opened(source, self._opener))
            case Direction.REWRAP:
                return _rewrap(exchange, source, self._opener, self._key, self.rounds)
        return _seal(exchange, _opened(source, self._opener), self._key, self.rounds)

    @property
    def _key(self) -> PublicKey:
        if self.public_key is None:
            message = f"{self.direction} needs a public key"
            raise UsageError(message)
        return self.public_key

    @property
    def _opener(self) -> Unwrap:
        if self.unwrap is None:
            message = f"{self.direction} needs an open vault"
            raise UsageError(message)
        return self.unwrap


def _plain(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk


def _opened(source: BinaryIO, unwrap: Unwrap) -> Iterable[bytes]:
    """The plaintext of a sealed file, verified to its last byte before the first is given out."""
    if os.fstat(source.fileno()).st_size <= WHOLE_LIMIT:
        return (dcrypt.open_bytes(source.read(), unwrap),)
    return dcrypt.open_file(source, unwrap)


def _seal(
    exchange: Exchange, plaintext: Iterable[bytes], public_key: PublicKey, rounds: int
) -> int:
    key = MessageKey.fresh()
    material = SealingMaterial(Ephemeral.fresh(public_key.curve), key)
    sealer = Sealer(public_key, rounds, material=material)
    digest = hashlib.sha256()
    exchange.write(sealer.header)
    for chunk in plaintext:
        digest.update(chunk)
        exchange.write(sealer.update(chunk))
    exchange.write(sealer.finish())
    with exchange.reread() as written:
        own = _sealed_with(key, material.digest, public_key)
        _check(digest.digest(), _opened(written, own))
    return sealer.size


def _decrypt(exchange: Exchange, plaintext: Iterable[bytes]) -> int:
    digest, size = hashlib.sha256(), 0
    for chunk in plaintext:
        digest.update(chunk)
        size += len(chunk)
        exchange.write(chunk)
    if not size:
        exchange.write(b"")  # an empty message is an empty file
    with exchange.reread() as written:
        _check(digest.digest(), _plain(written))
    return size


def _rewrap(
    exchange: Exchange, source: BinaryIO, unwrap: Unwrap, public_key: PublicKey, rounds: int
) -> int:
    """The same message key in a new header, the same ciphertext behind it."""
    header = parse_header(source.read(HEADER_LIMIT))
    key = unwrap(header)
    # A sealer of its own for the header alone: nothing is encrypted with this key a second time.
    material = SealingMaterial(Ephemeral.fresh(public_key.curve), key)
    exchange.write(Sealer(public_key, rounds, material=material).header)
    source.seek(header.length)
    size = 0
    for chunk in _plain(source):
        size += len(chunk)
        exchange.write(chunk)
    with exchange.reread() as written:  # the tag proves ciphertext and key
        for _ in _opened(written, _sealed_with(key, material.digest, public_key)):
            pass
    return size


def _sealed_with(key: MessageKey, digest: bytes, public_key: PublicKey) -> Unwrap:
    """Gives the key that was just sealed, to the header that says so; its digest is known."""

    def unwrap(header: Header) -> MessageKey:
        same = hmac.compare_digest(header.check_digest, digest)
        if header.key_id != public_key.key_id or not same:
            message = "the header does not read back as it was written"
            raise Damaged(message)
        return key

    return unwrap


def _check(expected: bytes, chunks: Iterable[bytes]) -> None:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    if not hmac.compare_digest(digest.digest(), expected):
        message = "the message does not read back as it was written"
        raise Damaged(message)
