"""Maildirs: durable delivery, folders, pins and the walk over all messages.

Knows nothing of encryption or accounts: bytes come in and lie safely, or an error says why not.
"""

from lmtp_atrest.maildir.deliver import NewMessage
from lmtp_atrest.maildir.filesystem import DiskFull, OverQuota, StorageFailure, UnsafePath
from lmtp_atrest.maildir.kept import KeptMaildirs
from lmtp_atrest.maildir.layout import FolderNames, FolderStyle, Layout
from lmtp_atrest.maildir.mailbox import PIN_NAME, Maildir, MessageFile

__all__ = [
    "PIN_NAME",
    "DiskFull",
    "FolderNames",
    "FolderStyle",
    "KeptMaildirs",
    "Layout",
    "Maildir",
    "MessageFile",
    "NewMessage",
    "OverQuota",
    "StorageFailure",
    "UnsafePath",
]
