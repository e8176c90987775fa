"""Maildirs: durable delivery, folders, pins and the walk over all messages.

Knows nothing of encryption or accounts: bytes come in and lie safely, or an error says why not.
"""

from lmtp_atrest.maildir.deliver import NewMessage
from lmtp_atrest.maildir.filesystem import DiskFull, OverQuota, StorageFailure, UnsafePath
from lmtp_atrest.maildir.mailbox import PIN_NAME, Maildir, MessageFile
from lmtp_atrest.maildir.names import FolderStyle

__all__ = [
    "PIN_NAME",
    "DiskFull",
    "FolderStyle",
    "Maildir",
    "MessageFile",
    "NewMessage",
    "OverQuota",
    "StorageFailure",
    "UnsafePath",
]
