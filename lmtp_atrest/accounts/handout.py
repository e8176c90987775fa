"""Private keys on their way to a reader, and how many of them one answer to Dovecot can hold."""

import base64
import secrets
from collections.abc import Sequence

from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.secret import Secret

# Dovecot's auth worker drops a reply over 8,192 bytes and nobody gets in: 11 prime256v1 or 8
# secp521r1 keys were measured to fit. The rest of the reply is names, paths and the public key.
WORKER_REPLY_BYTES = 8192
WORKER_REPLY_OVERHEAD = 480
KEY_FIELD_OVERHEAD = len("userdb_mail_crypt_global_private_key_password10=\t") + len(
    "userdb_mail_crypt_global_private_key10=\t"
)
# What a change leaves free: a site's own passdb and userdb fields travel in the same reply.
RESERVE_BYTES = 1000


def one_time(key: PrivateKey) -> tuple[str, str]:
    """The key as base64 of an encrypted PEM, and the password that is good for it alone.

    Dovecot's debug log prints the key but hides every field with "pass" in its name.
    """
    password = secrets.token_urlsafe(16)
    pem = key.encrypted_pem(Secret(password.encode()))
    return base64.b64encode(pem).decode(), password


def reply_bytes(handed_out: Sequence[tuple[str, str]]) -> int:
    """The size of the auth worker's reply that carries these keys."""
    fields = sum(len(pem) + len(password) + KEY_FIELD_OVERHEAD for pem, password in handed_out)
    return WORKER_REPLY_OVERHEAD + fields


def has_room(keys: Sequence[PrivateKey]) -> bool:
    """Whether a login can carry all these keys, with the reserve left."""
    return reply_bytes([one_time(key) for key in keys]) <= WORKER_REPLY_BYTES - RESERVE_BYTES
