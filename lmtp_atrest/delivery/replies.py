"""Every reply an MTA can get, and which trouble becomes which.

A permanent reply (5xx) is only ever given by name: for what the client itself got wrong, or what
the site said is certain. Whatever nobody thought of is 451: the MTA keeps the mail and tries
again.
The texts are fixed, so that no path, no address and no exception text can reach a peer.
"""

import errno
from dataclasses import dataclass

from lmtp_atrest.delivery.held import NoRoom
from lmtp_atrest.errors import Alarm


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply line: code (RFC 5321 4.2), enhanced code (RFC 3463; "" has none), text."""

    code: int
    enhanced: str
    text: str

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)

    @property
    def accepted(self) -> bool:
        """True where the mail is ours from now on."""
        return self.code == 250


STORED = Reply(250, "2.0.0", "stored")
STORED_BEFORE = Reply(250, "2.0.0", "stored already")
RECIPIENT_OK = Reply(250, "2.1.5", "recipient ok")
SENDER_OK = Reply(250, "2.1.0", "sender ok")
OK = Reply(250, "2.0.0", "ok")
SEND_DATA = Reply(354, "", "end data with <CR><LF>.<CR><LF>")
BYE = Reply(221, "2.0.0", "bye")
READY_FOR_TLS = Reply(220, "2.0.0", "ready to start TLS")

TIMED_OUT = Reply(421, "4.4.2", "timed out, closing")
STOPPING = Reply(421, "4.3.2", "service stops, try again")
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "too many connections, try again")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "too many errors, closing")
OVER_QUOTA = Reply(452, "4.2.2", "mailbox is full")
DISK_FULL = Reply(452, "4.3.1", "no room on this system")
NO_MEMORY = Reply(452, "4.3.1", "too much mail at once, try again")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "too many recipients, send the rest again")
TEMPORARY = Reply(451, "4.3.0", "temporary failure, try again")
NO_VALID_KEY = Reply(451, "4.7.5", "no valid key for this recipient, try again")
NOT_KNOWN_NOW = Reply(451, "4.3.0", "recipient not known now, try again")

NO_SUCH_RECIPIENT = Reply(550, "5.1.1", "no such recipient")
MALFORMED_RECIPIENT = Reply(501, "5.1.3", "malformed recipient address")
MALFORMED_SENDER = Reply(501, "5.1.7", "malformed sender address")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "address needs SMTPUTF8")
TOO_LARGE = Reply(552, "5.3.4", "message is too large")
NOT_A_COMMAND = Reply(500, "5.5.1", "command not recognised")
NO_PIPELINED_TLS = Reply(501, "5.5.1", "nothing may follow STARTTLS before the handshake")
NO_CHUNKING = Reply(500, "5.5.1", "BDAT is not offered, closing")
BAD_LINE = Reply(500, "5.5.2", "line has a bare CR, bare LF or NUL, or is too long")
BAD_SYNTAX = Reply(501, "5.5.4", "syntax error in parameters")
BAD_PARAMETER = Reply(555, "5.5.4", "parameter not recognised")
WRONG_ORDER = Reply(503, "5.5.1", "wrong order of commands")
NO_RECIPIENT = Reply(503, "5.5.1", "no valid recipients")
TLS_FIRST = Reply(530, "5.7.0", "issue STARTTLS first")

_BY_ERRNO = {errno.ENOSPC: DISK_FULL, errno.EDQUOT: OVER_QUOTA}


class Refused(Exception):
    """A recipient is not accepted; carries the reply. Not an error of ours."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def reply_for(error: BaseException) -> Reply:
    """The reply that this trouble becomes; 451 4.3.0 for everything without one of its own."""
    if isinstance(error, Refused):
        return error.reply
    if isinstance(error, Alarm):
        return NO_VALID_KEY
    if isinstance(error, NoRoom):
        return NO_MEMORY
    number = _errno(error)
    return _BY_ERRNO.get(number, TEMPORARY)


def _errno(error: BaseException | None) -> int:
    """The system's error number at the bottom of a chain of causes, or 0."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__ or error.__context__
        seen += 1
    return 0
