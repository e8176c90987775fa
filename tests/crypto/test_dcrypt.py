import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x448
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.dcrypt import Header, MessageKey, SealingMaterial
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import SEALING_CURVES, Curve, Ephemeral, PublicKey
from lmtp_atrest.errors import UsageError
from lmtp_atrest.secret import Secret
from tests.crypto.specwriter import Spec

VECTORS = Path(__file__).parents[1] / "vectors/dcrypt"
ENTRIES: list[dict[str, Any]] = [
    entry
    for version in ("2.3.19.1", "2.4.1")
    for entry in json.loads((VECTORS / version / "manifest.json").read_text())
]
VERSION_TWO = [e for e in ENTRIES if e["stream_version"] == 2]
VERSION_ONE = [e for e in ENTRIES if e["stream_version"] == 1]
KEYS = {curve: PrivateKey.generate(curve) for curve in SEALING_CURVES}
KEY = KEYS[Curve.PRIME256V1]


def opener(key: PrivateKey) -> Callable[[Header], MessageKey]:
    return lambda header: dcrypt.unwrap(header, key)


def both_ways(sealed: bytes, key: PrivateKey = KEY) -> bytes:
    """Open in memory and over a file; the two must agree, in the fault too."""
    try:
        plain = dcrypt.open_bytes(sealed, opener(key))
    except dcrypt.FormatError as error:
        with pytest.raises(type(error)):
            dcrypt.open_file(io.BytesIO(sealed), opener(key))
        raise
    assert b"".join(dcrypt.open_file(io.BytesIO(sealed), opener(key))) == plain
    return plain


def vector_key(entry: dict[str, Any]) -> PrivateKey:
    return PrivateKey.from_pem((VECTORS / entry["key"]).read_bytes())


@pytest.mark.parametrize("entry", VERSION_TWO, ids=lambda e: e["file"])
def test_message_written_by_dovecot_opens(entry: dict[str, Any]) -> None:
    sealed = (VECTORS / entry["file"]).read_bytes()
    header = dcrypt.parse_header(sealed)
    assert header.key_id.hex() == entry["key_id"] == vector_key(entry).key_id.hex()
    assert (header.rounds, header.length) == (entry["rounds"], entry["header_len"])
    assert header.key_type == entry["key_type"]
    assert header.raw == sealed[: header.length]
    plain = both_ways(sealed, vector_key(entry))
    assert plain == (VECTORS / entry["plain"]).read_bytes()
    assert hashlib.sha256(plain).hexdigest() == entry["plain_sha256"]


@pytest.mark.parametrize("entry", VERSION_ONE, ids=lambda e: e["file"])
def test_version_one_is_recognised_and_reported(entry: dict[str, Any]) -> None:
    sealed = (VECTORS / entry["file"]).read_bytes()
    assert dcrypt.is_sealed(sealed)
    with pytest.raises(dcrypt.VersionOne, match="version 1"):
        both_ways(sealed)


def test_all_vectors_were_tried() -> None:
    assert (len(VERSION_TWO), len(VERSION_ONE)) == (20, 5)


def test_worked_example_is_reproduced_byte_by_byte() -> None:
    public = PublicKey.from_pem((VECTORS / "keys/prime256v1.pub.pem").read_bytes())
    scalar = int.from_bytes(bytes(range(1, 0x21)), "big")
    ephemeral = Ephemeral(Curve.PRIME256V1, ec.derive_private_key(scalar, ec.SECP256R1()))
    material = SealingMaterial(ephemeral, MessageKey(Secret(bytes(range(0x40, 0x7C)))))
    sealer = dcrypt.Sealer(public, 2048, material=material)
    plain = (VECTORS / "worked-example.plain").read_bytes()
    sealed = sealer.header + sealer.update(plain) + sealer.finish()
    assert sealed == (VECTORS / "worked-example.crypt").read_bytes()
    digest = "131b30544739418ad3b5b7d8ac930fe47d3efbc192173b0eb1dc5d88cc35db9f"
    assert hashlib.sha256(sealed).hexdigest() == digest


@pytest.mark.parametrize("curve", SEALING_CURVES)
@pytest.mark.parametrize("rounds", [1, 2048])
def test_seal_and_open_on_every_curve(curve: Curve, rounds: int) -> None:
    plain = b"Subject: x\n\nhi\n"
    sealed = dcrypt.seal(KEYS[curve].public, plain, rounds)
    header = dcrypt.parse_header(sealed)
    sizes = {"prime256v1": 255, "secp384r1": 287, "secp521r1": 323, "x25519": 222}
    assert (header.length, header.rounds) == (sizes[curve], rounds)
    assert len(sealed) == len(plain) + header.length + dcrypt.TAG_SIZE
    assert both_ways(sealed, KEYS[curve]) == plain


@pytest.mark.parametrize(
    "private",
    [
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP521R1()),
        x448.X448PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["secp256k1", "secp521r1", "x448", "rsa"],
)
def test_an_independent_writer_is_read(private: Any) -> None:
    key = PrivateKey(PublicKey.of(private.public_key()), private)
    key_type = 1 if key.public.curve is Curve.RSA else 2
    sealed = Spec(private, key.key_id, key_type=key_type, rounds=3).write(b"from elsewhere")
    assert both_ways(sealed, key) == b"from elsewhere"


@pytest.mark.parametrize("curve", [Curve.RSA, Curve.X448, Curve.SECP256K1])
def test_sealing_to_a_curve_that_is_only_opened_is_refused(curve: Curve) -> None:
    with pytest.raises(UsageError):
        SealingMaterial.fresh(curve)


def spec(**faults: Any) -> bytes:
    return Spec(KEY._key, KEY.key_id, **faults).write(b"plain text")


FAULTS: dict[str, tuple[bytes, type[dcrypt.FormatError], str]] = {
    "ordinary message": (b"Return-Path: <a@b>\n", dcrypt.NotEncrypted, "magic"),
    "cut magic": (b"CRYPTED", dcrypt.NotEncrypted, "magic"),
    "cut before the version": (b"CRYPTED\x03\x07", dcrypt.Truncated, "1 bytes"),
    "cut before H": (spec()[:15], dcrypt.Truncated, "4 bytes"),
    "cut in the header": (spec()[:200], dcrypt.Truncated, "header of 255"),
    "cut in the tag": (spec()[: 255 + 15], dcrypt.Truncated, "1 bytes before"),
    "cut in the body": (spec()[:-1], dcrypt.BadTag, "cut"),
    "longer by one": (spec() + b"\n", dcrypt.BadTag, "extended"),
    "version 3": (spec(version=3), dcrypt.ForeignVersion, "version 3"),
    "flags HMAC": (spec(flags=1), dcrypt.ForeignFlags, "0x1"),
    "flags none": (spec(flags=4), dcrypt.ForeignFlags, "0x4"),
    "flags AEAD and more": (spec(flags=0x12), dcrypt.ForeignFlags, "0x12"),
    "AES-128-GCM": (spec(cipher="0609608648016503040106"), dcrypt.ForeignCipher, "040106"),
    "ChaCha20": (spec(cipher="060b2a864886f70d0109100312"), dcrypt.ForeignCipher, "0312"),
    "SHA-512": (spec(digest="0609608648016503040203"), dcrypt.ForeignDigest, "040203"),
    "no OID": (spec(cipher="0409608648016503040106"), dcrypt.BadLength, "identifier"),
    "long OID": (spec(cipher="0681096086480165030401"), dcrypt.BadLength, "identifier"),
    "rounds 0": (spec(rounds=0), dcrypt.BadRounds, "0 PBKDF2"),
    "rounds 100001": (spec(rounds=100_001), dcrypt.BadRounds, "100001"),
    "rounds 2^32-1": (spec(rounds=2**32 - 1), dcrypt.BadRounds, "4294967295"),
    "no key": (spec(keys=0), dcrypt.SeveralKeys, "0 recipient"),
    "two keys": (spec(keys=2), dcrypt.SeveralKeys, "2 recipient"),
    "key type 3": (spec(key_type=3), dcrypt.ForeignKeyType, "type 3"),
    "RSA type on an EC key": (spec(key_type=1), dcrypt.BadKeyData, "not an RSA key"),
    "H too small": (spec(header_length=17), dcrypt.BadLength, "17"),
    "H within the fields": (spec(header_length=100), dcrypt.BadLength, "key block"),
    "H over the limit": (spec(header_length=4097), dcrypt.BadLength, "4096"),
    "H longer than the file": (spec(header_length=4096), dcrypt.Truncated, "4096"),
    "H one too long": (spec(header_length=256), dcrypt.BadLength, "key block"),
    "block length lies": (spec(block_length=5), dcrypt.BadLength, "key block of 5"),
    "field length lies": (spec(wrapped_length=2**32 - 1), dcrypt.BadLength, "4294967295"),
    "bytes after the fields": (spec(after_fields=b"x"), dcrypt.BadLength, "do not have"),
    "wrapped data too long": (spec(pad=b"\x14" * 20), dcrypt.BadLength, "do not have"),
    "short check digest": (spec(check_digest=b""), dcrypt.BadLength, "do not have"),
    "wrong check digest": (spec(check_digest=bytes(32)), dcrypt.BadCheckDigest, "check digest"),
    "bad padding": (spec(pad=b"\x01\x02\x03\x00"), dcrypt.BadKeyData, "padding"),
    "61 bytes of key data": (
        spec(key_data=bytes(61), pad=b"\x03" * 3),
        dcrypt.BadKeyData,
        "61 bytes",
    ),
    "another key": (dcrypt.seal(KEYS[Curve.SECP384R1].public, b""), dcrypt.WrongKey, "sealed to"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_own_error(name: str) -> None:
    sealed, error, text = FAULTS[name]
    with pytest.raises(error, match=text) as caught:
        both_ways(sealed)
    assert type(caught.value) is error
    assert caught.value.public == "damaged"


def test_the_faulty_writer_without_a_fault_is_read() -> None:
    assert both_ways(spec()) == b"plain text"
    assert both_ways(spec(rounds=5000)) == b"plain text"


def test_point_off_the_curve_is_bad_key_data() -> None:
    sealed = bytearray(spec())
    sealed[100] ^= 1
    with pytest.raises(dcrypt.BadKeyData, match="ephemeral point"):
        both_ways(bytes(sealed))


def test_check_digest_may_be_left_to_the_tag() -> None:
    header = dcrypt.parse_header(spec(check_digest=bytes(32)))
    assert len(dcrypt.unwrap(header, KEY, check_digest=False).secret) == 60


def test_no_bytes_are_an_empty_message_and_an_empty_message_has_a_tag() -> None:
    assert both_ways(b"") == b""
    assert not dcrypt.is_sealed(b"")
    assert both_ways(dcrypt.seal(KEY.public, b"")) == b""


@pytest.mark.parametrize("rounds", [0, -1, 100_001])
def test_rounds_out_of_range_are_never_written(rounds: int) -> None:
    with pytest.raises(dcrypt.BadRounds):
        dcrypt.Sealer(KEY.public, rounds)


def test_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = dcrypt.seal(KEY.public, bytes(100))
    with pytest.raises(dcrypt.TooLong, match="limit of 99"):
        dcrypt.open_bytes(sealed, opener(KEY), limit=99)
    assert dcrypt.open_bytes(sealed, opener(KEY), limit=100) == bytes(100)
    monkeypatch.setattr(dcrypt, "GCM_LIMIT", 99)
    with pytest.raises(dcrypt.TooLong):
        dcrypt.open_file(io.BytesIO(sealed), opener(KEY))
    sealer = dcrypt.Sealer(KEY.public)
    sealer.update(bytes(99))
    with pytest.raises(dcrypt.TooLong):
        sealer.update(b"x")


def test_material_serves_one_message_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    material = SealingMaterial.fresh(Curve.PRIME256V1)
    dcrypt.Sealer(KEY.public, material=material)
    with pytest.raises(UsageError, match="one message"):
        dcrypt.Sealer(KEY.public, material=material)
    prepared = SealingMaterial.fresh(Curve.PRIME256V1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="process that made it"):
        prepared.take()


def test_two_messages_share_nothing() -> None:
    first, second = (dcrypt.parse_header(dcrypt.seal(KEY.public, b"same")) for _ in range(2))
    assert first.ephemeral != second.ephemeral
    assert first.wrapped != second.wrapped
    assert first.check_digest != second.check_digest


@dataclass
class Mutating:
    """Hands a file over after its first pass, changed: what a writer beside us would do."""

    sealed: bytes
    change: Callable[[bytearray], None]

    def open(self) -> bytes:
        file = io.BytesIO(self.sealed)
        plain = dcrypt.open_file(file, opener(KEY))
        changed = bytearray(self.sealed)
        self.change(changed)
        file.seek(0)
        file.truncate()
        file.write(changed)
        given = b""
        with pytest.raises(dcrypt.ChangedMeanwhile):
            for chunk in plain:
                given += chunk
        return given


def test_change_between_the_passes_gives_out_only_what_was_verified() -> None:
    plain = os.urandom(3 * dcrypt.CHUNK)
    sealed = dcrypt.seal(KEY.public, plain)
    at = 255 + dcrypt.CHUNK + 5

    def flip(data: bytearray) -> None:
        data[at] ^= 1

    def cut(data: bytearray) -> None:
        del data[at:]

    def empty(data: bytearray) -> None:
        data.clear()

    assert Mutating(sealed, flip).open() == plain[: dcrypt.CHUNK]
    assert Mutating(sealed, cut).open() == plain[: dcrypt.CHUNK]
    assert Mutating(sealed, empty).open() == b""


class CutWhileVerified(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if size == dcrypt.TAG_SIZE else super().read(size)


def test_file_that_loses_its_tag_during_the_first_pass_is_refused() -> None:
    with pytest.raises(dcrypt.BadTag):
        dcrypt.open_file(CutWhileVerified(dcrypt.seal(KEY.public, b"x")), opener(KEY))


@pytest.mark.parametrize("size", [0, 1, dcrypt.CHUNK - 1, dcrypt.CHUNK, 2 * dcrypt.CHUNK + 1])
def test_sizes_around_the_chunk(size: int) -> None:
    plain = os.urandom(size)
    assert both_ways(dcrypt.seal(KEY.public, plain)) == plain


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.sampled_from(SEALING_CURVES))
def test_any_chunking_round_trips(chunks: list[bytes], curve: Curve) -> None:
    sealer = dcrypt.Sealer(KEYS[curve].public)
    body = b"".join(sealer.update(chunk) for chunk in chunks)
    assert both_ways(sealer.header + body + sealer.finish(), KEYS[curve]) == b"".join(chunks)
    assert sealer.size == len(body)


SEALED = dcrypt.seal(KEY.public, b"Subject: canary\n\nbody\n")


@settings(max_examples=250, deadline=None)
@given(st.integers(0, len(SEALED) * 8 - 1))
def test_any_flipped_bit_is_an_error(bit: int) -> None:
    damaged = bytearray(SEALED)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(dcrypt.FormatError):
        both_ways(bytes(damaged))


@pytest.mark.parametrize("size", range(1, len(SEALED)))
def test_any_truncation_is_an_error(size: int) -> None:
    with pytest.raises(dcrypt.FormatError) as caught:
        both_ways(SEALED[:size])
    known = 9 if size < 9 else 255 + 16
    expected = dcrypt.NotEncrypted if size < 9 else dcrypt.Truncated
    assert isinstance(caught.value, expected if size < known else dcrypt.BadTag)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_after_the_magic_is_a_format_error(tail: bytes) -> None:
    for start in (b"", dcrypt.MAGIC, SEALED[:18], SEALED[:48]):
        if start + tail:
            with pytest.raises(dcrypt.FormatError):
                both_ways(start + tail)
