"""The vault: an account's private keys under one random vault key.

Two subkeys come from the vault key by HKDF-SHA256: one seals the private keys, the other is the
commitment that the account's signed record carries. Whoever opens a slot compares the commitment
before anything is unsealed, so a vault key that somebody made up opens nothing.
"""

import json
import secrets

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from lmtp_atrest.errors import Damaged
from lmtp_atrest.secret import Secret

KEY_BYTES = 32
NONCE_BYTES = 24
SEALING = b"lmtp-atrest vault 1 private keys"
COMMITMENT = b"lmtp-atrest vault 1 commitment"


class VaultKey(Secret):
    """32 random bytes that open one vault."""

    __slots__ = ()

    @classmethod
    def generate(cls) -> "VaultKey":
        """A new one."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def commitment(self) -> bytes:
        """32 public bytes that fit this vault key and no other."""
        return self._subkey(COMMITMENT)

    def seal(self, private_key: Secret, account_id: str, vault_id: str, key_id: bytes) -> bytes:
        """A private key (PKCS#8 DER) as nonce and ciphertext, bound to where it belongs."""
        nonce = secrets.token_bytes(NONCE_BYTES)  # 192 random bits do not repeat
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(
            private_key.reveal(),
            _associated(account_id, vault_id, key_id),
            nonce,
            self._subkey(SEALING),
        )

    def unseal(self, sealed: bytes, account_id: str, vault_id: str, key_id: bytes) -> Secret:
        """The private key again; Damaged where anything does not fit."""
        try:
            return Secret(
                crypto_aead_xchacha20poly1305_ietf_decrypt(
                    sealed[NONCE_BYTES:],
                    _associated(account_id, vault_id, key_id),
                    sealed[:NONCE_BYTES],
                    self._subkey(SEALING),
                )
            )
        except (CryptoError, ValueError, TypeError) as error:
            message = f"private key {key_id.hex()[:16]} of account {account_id} does not unseal"
            raise Damaged(message) from error

    def _subkey(self, purpose: bytes) -> bytes:
        # The vault key is uniformly random, so no salt is needed (RFC 5869, 3.1).
        return HKDF(SHA256(), 32, salt=None, info=purpose).derive(self.reveal())


def _associated(account_id: str, vault_id: str, key_id: bytes) -> bytes:
    return json.dumps(["lmtp-atrest private key 1", account_id, vault_id, key_id.hex()]).encode()
