import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x448
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from lmtp_atrest.crypto.keypair import AnyPrivate, PrivateKey
from lmtp_atrest.crypto.publickey import (
    NAMED_CURVES,
    SEALING_CURVES,
    Curve,
    Ephemeral,
    PublicKey,
)
from lmtp_atrest.errors import Damaged, UsageError, WrongSecret
from lmtp_atrest.secret import Secret

KEYS = Path(__file__).parents[1] / "vectors/dcrypt/keys"
KINDS = ("prime256v1", "secp384r1", "x25519", "rsa2048")


def pkcs8(key: AnyPrivate | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("kind", KINDS)
def test_public_half_of_a_private_key_is_the_public_key_file(kind: str) -> None:
    private = PrivateKey.from_pem((KEYS / f"{kind}.key.pem").read_bytes())
    public = PublicKey.from_pem((KEYS / f"{kind}.pub.pem").read_bytes())
    assert private.public == public
    assert private.key_id == public.key_id == hashlib.sha256(public.spki).digest()
    assert public.pem() == (KEYS / f"{kind}.pub.pem").read_bytes()
    assert PublicKey.from_der(public.spki) == public


@pytest.mark.parametrize("curve", NAMED_CURVES)
def test_key_id_is_what_openssl_makes_of_the_compressed_point(
    curve: Curve, tmp_path: Path
) -> None:
    key = ec.generate_private_key(NAMED_CURVES[curve])
    public = PublicKey.of(key.public_key())
    pem = tmp_path / "pub.pem"
    pem.write_bytes(public.pem())
    command: list[str | Path] = ["openssl", "ec", "-pubin", "-in", pem, "-conv_form", "compressed"]
    try:
        der = subprocess.run([*command, "-outform", "DER"], capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no openssl command")
    assert public.spki == der
    assert public.curve is curve


@pytest.mark.parametrize("curve", SEALING_CURVES)
def test_generated_keys_survive_der_and_encrypted_pem(curve: Curve) -> None:
    key = PrivateKey.generate(curve)
    assert key.public.curve is curve
    assert PrivateKey.from_der(key.der()).public == key.public
    pem = key.encrypted_pem(Secret(b"one-time"))
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert PrivateKey.from_pem(pem, Secret(b"one-time")).der() == key.der()
    assert PrivateKey.generate(curve).key_id != key.key_id


def test_openssl_reads_the_encrypted_pem(tmp_path: Path) -> None:
    key, pem = PrivateKey.generate(Curve.PRIME256V1), tmp_path / "key.pem"
    pem.write_bytes(key.encrypted_pem(Secret(b"one-time")))
    command: list[str | Path] = [
        "openssl",
        "pkey",
        "-in",
        pem,
        "-passin",
        "pass:one-time",
        "-outform",
        "DER",
    ]
    try:
        done = subprocess.run([*command, "-pubout"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("no openssl command")
    assert PublicKey.from_der(done.stdout) == key.public


@pytest.mark.parametrize("curve", SEALING_CURVES)
def test_both_sides_agree_on_a_secret_of_field_size(curve: Curve) -> None:
    key = PrivateKey.generate(curve)
    point, shared = key.public.encapsulate()
    assert key.agree(point) == shared
    sizes = {"prime256v1": 32, "secp384r1": 48, "secp521r1": 66, "x25519": 32}
    assert len(shared) == sizes[curve]
    assert key.public.encapsulate()[0] != point


@pytest.mark.parametrize("curve", [Curve.RSA, Curve.X448, Curve.SECP256K1])
def test_curves_that_are_only_opened_are_not_generated(curve: Curve) -> None:
    with pytest.raises(UsageError, match="prime256v1"):
        PrivateKey.generate(curve)


def test_ephemeral_of_another_curve_is_refused() -> None:
    public = PrivateKey.generate(Curve.X25519).public
    with pytest.raises(Damaged):
        public.encapsulate(Ephemeral.fresh(Curve.PRIME256V1))


def test_small_order_public_key_is_refused_at_sealing() -> None:
    zero = PublicKey.from_der(bytes.fromhex("302a300506032b656e032100") + bytes(32))
    with pytest.raises(Damaged, match="no shared secret"):
        zero.encapsulate()


def test_needed_missing_needless_and_wrong_passwords_are_wrong_secrets() -> None:
    pem = PrivateKey.generate(Curve.PRIME256V1).encrypted_pem(Secret(b"right"))
    plain = (KEYS / "prime256v1.key.pem").read_bytes()
    for data, password in ((pem, None), (pem, Secret(b"wrong")), (plain, Secret(b"x"))):
        with pytest.raises(WrongSecret):
            PrivateKey.from_pem(data, password)


@pytest.mark.parametrize("data", [b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_garbage_is_damaged_not_a_crash(data: bytes) -> None:
    with pytest.raises(Damaged):
        PrivateKey.from_pem(data)
    with pytest.raises(Damaged):
        PrivateKey.from_der(Secret(data))
    with pytest.raises(Damaged):
        PublicKey.from_pem(data)
    with pytest.raises(Damaged):
        PublicKey.from_der(data)


def test_keys_of_other_kinds_are_refused() -> None:
    foreign = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(Damaged, match="unsupported"):
        PrivateKey.from_der(Secret(pkcs8(foreign)))
    public = foreign.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(Damaged, match="unsupported"):
        PublicKey.from_der(public)
    with pytest.raises(Damaged, match="unsupported"):
        PrivateKey.from_der(Secret(pkcs8(ec.generate_private_key(ec.SECP224R1()))))


def test_agreement_refuses_points_that_are_not_on_the_curve() -> None:
    for curve, point in (
        (Curve.PRIME256V1, b"\x04" + b"\x01" * 64),
        (Curve.PRIME256V1, b""),
        (Curve.X25519, bytes(32)),
        (Curve.X25519, b"short"),
    ):
        with pytest.raises(Damaged):
            PrivateKey.generate(curve).agree(point)


def test_rsa_unwraps_and_curves_do_not() -> None:
    key = PrivateKey.from_pem((KEYS / "rsa2048.key.pem").read_bytes())
    assert key.public.curve is Curve.RSA
    with pytest.raises(Damaged):
        key.decrypt_rsa(bytes(256))
    with pytest.raises(Damaged):
        key.agree(bytes(32))
    with pytest.raises(Damaged):
        PrivateKey.generate(Curve.X25519).decrypt_rsa(bytes(256))


def test_x448_keys_are_read() -> None:
    key = PrivateKey.from_der(Secret(pkcs8(x448.X448PrivateKey.generate())))
    assert key.public.curve is Curve.X448
    with pytest.raises(UsageError):
        key.public.encapsulate()


def test_nothing_of_a_private_key_is_printed() -> None:
    key = rsa.generate_private_key(65537, 1024)
    assert "d=" not in repr(PrivateKey.from_der(Secret(pkcs8(key))))
    assert repr(PrivateKey.generate(Curve.PRIME256V1)).startswith("<")
