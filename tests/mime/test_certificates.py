from datetime import timedelta
from pathlib import Path

import pysequoia
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import ConfigError, Damaged, UsageError
from lmtp_atrest.mime import SIZE_LIMIT, openpgp, read_file
from tests.mime.owners import NOW, PRIVATE, GnuPG, PGPOwner, SMIMEOwner


def usage(*, encrypts: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=encrypts,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def test_an_openpgp_certificate_is_shown() -> None:
    owner = PGPOwner(valid_seconds=3600)
    (found,) = read_file(Kind.OPENPGP, str(owner.key.extract_certificate()).encode(), NOW)
    assert found.fingerprint == owner.key.extract_certificate().fingerprint.upper()
    assert found.user_ids == ("alice <alice@example.org>",)
    assert found.algorithms == ("EdDSA", "EdDSA", "ECDH")
    assert found.expires is not None
    assert abs(found.expires - NOW - timedelta(hours=1)) < timedelta(minutes=5)
    assert (found.trouble, found.data) == ("", owner.certificate)


def test_a_keyring_holds_several() -> None:
    owners = [PGPOwner("a"), PGPOwner("b")]
    found = read_file(Kind.OPENPGP, b"".join(owner.certificate for owner in owners), NOW)
    assert [one.data for one in found] == [owner.certificate for owner in owners]


def test_an_smime_certificate_is_shown() -> None:
    owner = SMIMEOwner()
    for file in (owner.pem, owner.certificate):
        (found,) = read_file(Kind.SMIME, file, NOW)
        assert found.user_ids == ("CN=Alice", "alice@example.org")
        assert found.algorithms == ("RSA 2048",)
        assert (found.trouble, found.data) == ("", owner.certificate)


EXPIRED = SMIMEOwner(NOW - timedelta(days=2), timedelta(days=1))
EARLY = SMIMEOwner(NOW + timedelta(days=2))
CURVE = SMIMEOwner(key=ec.generate_private_key(ec.SECP256R1()))
SMALL = SMIMEOwner(key=rsa.generate_private_key(65537, 1024))
SIGNS = SMIMEOwner(NOW, timedelta(days=9), PRIVATE, usage(encrypts=False))
SERVER = SMIMEOwner(
    NOW, timedelta(days=9), PRIVATE, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
)
MAIL = SMIMEOwner(
    NOW,
    timedelta(days=9),
    PRIVATE,
    usage(encrypts=True),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
)


@pytest.mark.parametrize(
    ("owner", "trouble"),
    [
        (EXPIRED, "it expired on"),
        (EARLY, "it is not valid before"),
        (CURVE, "only RSA keys"),
        (SMALL, "fewer than 2048 bits"),
        (SIGNS, "key usage does not allow"),
        (SERVER, "it is not for mail"),
        (MAIL, ""),
    ],
    ids=["expired", "early", "curve", "small", "signs only", "server", "mail"],
)
def test_what_an_smime_certificate_must_have(owner: SMIMEOwner, trouble: str) -> None:
    (found,) = read_file(Kind.SMIME, owner.pem, NOW)
    assert trouble in found.trouble
    assert bool(trouble) == bool(found.trouble)


def test_what_an_openpgp_certificate_must_have(tmp_path: Path) -> None:
    """Not revoked, nothing expired that is needed, and a key that may encrypt."""
    gpg = GnuPG(tmp_path)
    past = ("--faked-system-time", "20240101T000000!")
    try:
        gpg("--quick-gen-key", "revoked", "default", "default", "0")
        (revocation,) = (tmp_path / "openpgp-revocs.d").glob("*.rev")
        gpg("--import", given=revocation.read_bytes().replace(b":---", b"---"))
        gpg("--quick-gen-key", "signs", "ed25519", "sign", "0")
        gpg(*past, "--quick-gen-key", "expired", "rsa2048", "sign,encrypt", "1y")
        gpg(*past, "--quick-gen-key", "subkey", "ed25519", "sign", "0")
        fingerprint = next(
            line.split(":")[9]
            for line in gpg("--list-keys", "--with-colons", "subkey").decode().splitlines()
            if line.startswith("fpr")
        )
        gpg(*past, "--quick-add-key", fingerprint, "cv25519", "encr", "1y")
        troubles = {
            "revoked": "it is revoked",
            "signs": "the OpenPGP certificate does not serve: No suitable encryption subkey for",
            "expired": "it expired on 2024-12-31",
            "subkey": "it expired on 2024-12-31",
        }
        for name, trouble in troubles.items():
            (found,) = read_file(Kind.OPENPGP, gpg("--export", name), NOW)
            assert found.trouble.startswith(trouble)
            assert "\n" not in found.trouble
        gpg("--quick-add-key", fingerprint, "cv25519", "encr", "0")
        renewed = gpg("--export", "subkey")
        (found,) = read_file(Kind.OPENPGP, renewed, NOW)
        assert (found.trouble, found.expires) == ("", None)
        # What is sent goes to the subkey that is valid, which is the newer one.
        message = openpgp.encrypt([openpgp.parsed(renewed)], b"x", NOW)
        assert gpg("--decrypt", given=message) == b"x"
    finally:
        gpg.close()


def test_files_that_are_refused() -> None:
    owner, mail = PGPOwner(), SMIMEOwner()
    refused = [
        (Kind.OPENPGP, bytes(owner.key), UsageError, "private key"),
        (Kind.SMIME, mail.pem + mail.private_pem(), UsageError, "private key"),
        (Kind.OPENPGP, b"", UsageError, "there is no certificate"),
        (Kind.OPENPGP, b"junk", Damaged, "does not serve"),
        (Kind.SMIME, b"junk", Damaged, "no X.509"),
        (Kind.OPENPGP, mail.pem, Damaged, "does not serve"),
        (Kind.SMIME, owner.certificate, Damaged, "no X.509"),
        (Kind.OPENPGP, bytes(2 * SIZE_LIMIT + 1), UsageError, "24 KiB"),
        (Kind.SMIME, mail.pem * 17, UsageError, "16 at most"),
        (Kind.OPENPGP, _large(), UsageError, "24 KiB"),
    ]
    for kind, raw, error, text in refused:
        with pytest.raises(error, match=text):
            read_file(kind, raw, NOW)


def _large() -> bytes:
    names = [f"{number} {'x' * 900}" for number in range(26)]
    return bytes(pysequoia.Tsk.generate(user_ids=names).extract_certificate())


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openpgp, "INSTALLED", False)
    with pytest.raises(ConfigError, match=r"lmtp-atrest\[openpgp\]"):
        read_file(Kind.OPENPGP, b"x", NOW)
