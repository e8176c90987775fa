"""The errors of this program, each with two faces.

`str(error)` is for the operator's log and names the cause. `error.public` is the short, true and
harmless sentence a peer may read: no path, no secret, no exception text. Whatever is not one of
these is "temporary trouble" to a peer, and 451 where mail is concerned.
"""


class AtRestError(Exception):
    """Base of all errors of ours."""

    public = "temporary failure"
    exit_code = 1


class UsageError(AtRestError):
    """What was asked for does not fit; the message says what would."""

    exit_code = 2


class ConfigError(AtRestError):
    """The configuration has faults; all of them are listed, one a line."""

    exit_code = 3

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class TemporaryFailure(AtRestError):
    """A store, disk or neighbour does not answer now; trying again later may help."""

    exit_code = 4


class Alarm(TemporaryFailure):
    """Something only an attack or a restored backup explains; nothing is delivered or opened."""

    exit_code = 5


class NotFound(AtRestError):
    """No such account, name, session or file."""

    public = "not found"
    exit_code = 6


class WrongSecret(AtRestError):
    """The secret opens no slot of this vault."""

    public = "wrong secret"
    exit_code = 7


class Damaged(AtRestError):
    """Bytes that should open do not fit their own check; never said of a wrong secret."""

    public = "damaged"
    exit_code = 8


class Conflict(AtRestError):
    """Somebody else changed the account first; read again and decide again."""

    public = "changed meanwhile, try again"
    exit_code = 9


class WrongState(AtRestError):
    """The account is in a state that this operation does not apply to."""

    public = "not possible in this state"
    exit_code = 10


class Busy(TemporaryFailure):
    """Too much is waiting already; answered at once instead of queued."""

    public = "busy, try again"
    exit_code = 11

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadCode(AtRestError):
    """What was typed is no code, or one with a typing error; the message never holds it."""

    public = "the code has a typo"
    exit_code = 12
