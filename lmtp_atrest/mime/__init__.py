"""A message as one encrypted MIME part, for accounts whose private key is not here.

Bytes in, bytes out: `certificates` reads what a user hands in, `message` splits a message into
what stays readable and what does not, `openpgp` and `smime` encrypt, `sealing` puts it together.
`docs/openpgp.md` says what comes out.
"""

from lmtp_atrest.mime.certificates import (
    FILE_LIMIT,
    SIZE_LIMIT,
    Certificate,
    check_bounds,
    read_file,
    read_stored,
)
from lmtp_atrest.mime.sealing import Certificates, NoUsableCertificate

__all__ = [
    "FILE_LIMIT",
    "SIZE_LIMIT",
    "Certificate",
    "Certificates",
    "NoUsableCertificate",
    "check_bounds",
    "read_file",
    "read_stored",
]
