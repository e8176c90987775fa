import email.policy
import subprocess
from datetime import timedelta
from email import message_from_bytes
from pathlib import Path

import pytest

from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import Damaged
from lmtp_atrest.mime import Certificates, NoUsableCertificate
from tests.mime.owners import (
    NOW,
    GnuPG,
    Owner,
    PGPOwner,
    SMIMEOwner,
    crlf,
    original,
    parsed,
    pgp_payload,
    program,
)

TRACE = b"Return-Path: <s@x>\nDelivered-To: alice@example.org\nReceived: from c\n\tby h; now\n"
USUAL = (
    b"Received: from a\n\tby b; then\nMessage-ID: <1@x>\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n"
    b"From: Carol <carol@x>\nTo: alice@example.org\nSubject: canary in\n the subject\n"
    b"List-Id: <l.x>\nX-Spam-Flag: YES\nX-Spam-Report: canary\nThread-Topic: canary\n"
    b'MIME-Version: 1.0\nContent-Type: text/html;\n charset="utf-8";\n'
    b"Content-Transfer-Encoding: 8bit\nX-Other: canary\n\ncanary \xc3\xa4\n"
)
SIGNED = (
    b"From: a@x\nContent-Type: multipart/signed; boundary=b; micalg=pgp-sha256;\n"
    b' protocol="application/pgp-signature"\n\n--b\nContent-Type: text/plain\n\nsigned  \n'
    b"--b\nContent-Type: application/pgp-signature\n\nx\n--b--\n"
)
MESSAGES = {
    "usual": USUAL,
    "8-bit": b"From: a@x\nSubject: \xff\n\n" + bytes(range(256)).replace(b"\r", b"") + b"\n",
    "no final newline": b"From: a@x\n\nend",
    "CRLF": b"From: a@x\r\nSubject: s\r\n\r\nx\r\n",
    "both line ends, bare CR": b"From: a@x\r\nSubject: s\n\nx\ry\r\r\nz\n",
    "header only": b"From: a@x\nContent-Type: text/html\n",
    "header only, no final newline": b"From: a@x\nContent-Type: text/html",
    "no header": b"\nbody\n",
    "no header and no empty line": b"just text\nand more\n",
    "empty": b"",
    "signed": SIGNED,
    "signed, opaque": b"Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nx\n",
    "a type that is none": b"Content-Type: text\n\nx\n",
    "text/plain first": b"Content-Type: text/plain\nFrom: a@x\n\nx\n",
    "two types": b"Content-Type: multipart/encrypted\ncontent-type: text/plain\n\nx\n",
    "fields that look like ours": b"From: a@x\nHP-Outer: no\nX-Lmtp-Atrest: openpgp\n\nx\n",
    "20 MB": b"From: a@x\nContent-Type: text/plain\n\n" + b"0123456789abcde\n" * (20 << 16),
}


@pytest.fixture(scope="module", params=[PGPOwner, SMIMEOwner])
def owner(request: pytest.FixtureRequest) -> Owner:
    made: Owner = request.param()
    return made


def seal(owner: Owner, message: bytes, *, hide_subject: bool = True) -> bytes:
    return Certificates(owner.kind, [owner.certificate]).seal(
        TRACE, message, hide_subject=hide_subject, now=NOW
    )


@pytest.mark.parametrize("name", MESSAGES)
def test_the_owner_reads_the_message_byte_for_byte(owner: Owner, name: str) -> None:
    """All of it with CRLF line ends, once what was added is taken away."""
    message = MESSAGES[name]
    stored = seal(owner, message)
    assert stored.startswith(TRACE)
    assert b"\r" not in stored
    assert original(owner.decrypt(stored)) == crlf(message)


def test_what_stays_readable(owner: Owner) -> None:
    """Transport, threading, spam and list fields: in full, and of them no more than once."""
    stored = seal(owner, USUAL)
    assert b"canary" not in stored
    names = [name for name, _ in parsed(stored).items()]
    head = ["Return-Path", "Delivered-To", "Received", "Received", "Message-ID", "Date", "From"]
    mark = ["To", "Subject", "List-Id", "X-Spam-Flag", "X-Lmtp-Atrest", "MIME-Version"]
    assert names[:13] == head + mark
    assert set(names[13:]) <= {
        "Content-Type", "Content-Transfer-Encoding", "Content-Disposition"
    }  # fmt: skip
    assert parsed(stored)["Subject"] == "..."
    assert parsed(stored)["X-Lmtp-Atrest"] == owner.kind
    visible = parsed(seal(owner, USUAL, hide_subject=False))
    assert visible["Subject"] == "canary in\n the subject"


def test_the_protected_header_is_as_rfc_9788_says(owner: Owner) -> None:
    inner = message_from_bytes(owner.decrypt(seal(owner, USUAL)), policy=email.policy.default)
    assert inner["Subject"] == "canary in the subject"
    assert inner.get_param("hp") == "cipher"
    assert inner.get_param("protected-headers") == "v1"
    assert inner.get_content_charset() == "utf-8"
    outer = inner.get_all("HP-Outer")
    assert outer is not None
    assert [str(value).partition(":")[0] for value in outer] == [
        "Message-ID", "Date", "From", "To", "Subject", "List-Id"
    ]  # fmt: skip
    assert "Subject: ..." in outer


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/encrypted; protocol=x",
        "Multipart/Encrypted",
        "\n application/pkcs7-mime;\n smime-type=Enveloped-Data",
        'application/x-pkcs7-mime; name=a; smime-type="authEnveloped-data"',
    ],
)
def test_what_came_encrypted_is_left_and_marked(owner: Owner, kind: str) -> None:
    message = f"From: a@x\nContent-Type: {kind}\n\nciphertext\n".encode()
    assert seal(owner, message) == TRACE + b"X-Lmtp-Atrest: came-encrypted\n" + message


@pytest.mark.parametrize(
    "message",
    [
        b"a:\n" * 2_000_000,
        b"From: a@x\n" * 1_000_000,
        b"Subject: a\n b\n" * 500_000,
        b"Content-Type: text/plain\n" * 1_000_000,
        b"Content-Type:" + b"\n " * 2_000_000,
        b"Content-Type: application/pkcs7-mime" + b";smime-type" * 500_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: x/y\n\n" * 500_000,
    ],
    ids=lambda message: message[:24].decode().strip(),
)
def test_a_million_fields_or_parts_do_no_harm(message: bytes) -> None:
    """They cost what their bytes cost, and little of them stays outside."""
    owner = PGPOwner()
    stored = seal(owner, message)
    outside, _, _ = stored.partition(b"X-Lmtp-Atrest")
    assert len(outside) <= len(TRACE) + 256 * 1024
    assert original(owner.decrypt(stored)) == crlf(message)


@pytest.mark.parametrize("kind", [PGPOwner, SMIMEOwner])
def test_every_certificate_that_serves_opens_it(kind: type[Owner]) -> None:
    """One that has expired is left out; where none is left, nothing is encrypted."""
    first, second = kind(), kind()
    short: Owner = (
        PGPOwner(valid_seconds=60)
        if kind is PGPOwner
        else SMIMEOwner(NOW - timedelta(days=1), timedelta(days=1, seconds=60))
    )
    both = Certificates(first.kind, [owner.certificate for owner in (first, short, second)])
    stored = both.seal(TRACE, USUAL, hide_subject=True, now=NOW + timedelta(days=30))
    assert original(first.decrypt(stored)) == original(second.decrypt(stored)) == crlf(USUAL)
    if isinstance(short, PGPOwner):
        with pytest.raises(RuntimeError):
            short.decrypt(stored)
    only = Certificates(short.kind, [short.certificate])
    assert only.seal(TRACE, USUAL, hide_subject=True, now=NOW + timedelta(seconds=1))
    with pytest.raises(NoUsableCertificate, match="expired on"):
        only.seal(TRACE, USUAL, hide_subject=True, now=NOW + timedelta(days=30))


@pytest.mark.parametrize("kind", [Kind.OPENPGP, Kind.SMIME])
def test_no_certificate_and_no_mail(kind: Kind) -> None:
    with pytest.raises(NoUsableCertificate, match="there is none"):
        Certificates(kind, []).seal(TRACE, USUAL, hide_subject=True)
    with pytest.raises(Damaged):
        Certificates(kind, [b"junk"]).seal(TRACE, USUAL, hide_subject=True)


def test_gnupg_opens_it(tmp_path: Path) -> None:
    gpg = GnuPG(tmp_path)
    try:
        gpg("--quick-gen-key", "alice@example.org", "rsa2048", "sign,encrypt", "0")
        gpg("--quick-gen-key", "both@example.org", "default", "default", "0")
        for name in ("alice", "both"):
            stored = Certificates(Kind.OPENPGP, [gpg("--export", name)]).seal(
                TRACE, MESSAGES["8-bit"], hide_subject=True
            )
            opened = gpg("--decrypt", given=pgp_payload(stored))
            assert original(opened) == crlf(MESSAGES["8-bit"])
    finally:
        gpg.close()


def test_openssl_opens_it(tmp_path: Path) -> None:
    owner = SMIMEOwner()
    (tmp_path / "key.pem").write_bytes(owner.private_pem() + owner.pem)
    stored = crlf(seal(owner, MESSAGES["8-bit"]))
    key = str(tmp_path / "key.pem")
    for_reader = ["-inform", "SMIME", "-recip", key, "-inkey", key, "-binary"]
    done = subprocess.run(
        [program("openssl"), "cms", "-decrypt", *for_reader],
        input=stored,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert original(done.stdout) == crlf(MESSAGES["8-bit"])
