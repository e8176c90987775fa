"""A second writer of the format, straight from its description, able to write every fault."""

import hashlib
import os
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x448, x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lmtp_atrest.crypto.keypair import AnyPrivate


@dataclass
class Spec:
    private: AnyPrivate
    key_id: bytes
    version: int = 2
    flags: int = 2
    cipher: str = "060960864801650304012e"
    digest: str = "0609608648016503040201"
    rounds: int = 1
    keys: int = 1
    key_type: int = 2
    key_data: bytes = field(default_factory=lambda: os.urandom(60))
    pad: bytes = b"\x04" * 4
    check_digest: bytes | None = None
    header_length: int | None = None
    block_length: int | None = None
    wrapped_length: int | None = None
    after_fields: bytes = b""

    def write(self, plain: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), None)
            point, wrapped = b"", self.private.public_key().encrypt(self.key_data, oaep)
        else:
            point, wrapped = self._wrap()
        check = self._chain() if self.check_digest is None else self.check_digest
        wrapped_length = len(wrapped) if self.wrapped_length is None else self.wrapped_length
        block = struct.pack(">BB32sI", self.keys, self.key_type, self.key_id, len(point)) + point
        block += struct.pack(">I", wrapped_length) + wrapped
        block += struct.pack(">I", len(check)) + check + self.after_fields
        algorithms = bytes.fromhex(self.cipher + self.digest)
        length = 18 + len(algorithms) + 8 + len(block)
        header = b"CRYPTED\x03\x07" + struct.pack(
            ">BII", self.version, self.flags, self.header_length or length
        )
        header += algorithms + struct.pack(">II", self.rounds, self.block_length or len(block))
        key, iv, associated = self.key_data[:32], self.key_data[32:44], self.key_data[44:60]
        return header + block + AESGCM(key).encrypt(iv, plain, associated)

    def _wrap(self) -> tuple[bytes, bytes]:
        key = self.private
        if isinstance(key, x25519.X25519PrivateKey):
            e = x25519.X25519PrivateKey.generate()
            point, shared = e.public_key().public_bytes_raw(), e.exchange(key.public_key())
        elif isinstance(key, x448.X448PrivateKey):
            e4 = x448.X448PrivateKey.generate()
            point, shared = e4.public_key().public_bytes_raw(), e4.exchange(key.public_key())
        else:
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            ee = ec.generate_private_key(key.curve)
            point = ee.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            shared = ee.exchange(ec.ECDH(), key.public_key())
        derived = hashlib.pbkdf2_hmac("sha256", shared, point, max(1, min(self.rounds, 5000)), 48)
        cbc = Cipher(AES256(derived[:32]), CBC(derived[32:])).encryptor()
        return point, cbc.update(self.key_data + self.pad) + cbc.finalize()

    def _chain(self) -> bytes:
        digest = hashlib.sha256(self.key_data).digest()
        for i in range(1, 2049):
            digest = hashlib.sha256(digest + i.to_bytes(4, "big")).digest()
        return digest
