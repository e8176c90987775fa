"""What the portal may ask with the operations of its socket: what users may do for themselves.

The portal has verified who the user is. Whatever changes what opens the mail carries a secret of
the user all the same, and is checked here as a guess is; an administrator's shorter ways are not
for it.
"""

from lmtp_atrest.errors import UsageError
from lmtp_atrest.unlock.requests import (
    AccountCode,
    AccountEnable,
    AccountFreeze,
    AccountJoin,
    AccountThaw,
    AppPasswordRemove,
    Request,
)

NOT_FOR_OWNERS = "the portal may not ask this for a user"


def check_own(request: Request) -> None:
    """UsageError for what only an administrator may ask."""
    match request:
        case AccountEnable(mail_to=mail_to) | AccountCode(mail_to=mail_to):
            allowed = not mail_to
        case AccountFreeze(name=name):
            allowed = bool(name)  # without one it means everybody
        case AccountJoin(by=by):
            allowed = by != "admin"
        case AccountThaw(by=by):
            allowed = by == "code"  # whoever knows the password may be whom it was frozen for
        case AppPasswordRemove(secret=secret):
            allowed = secret is not None
        case _:
            allowed = True
    if not allowed:
        raise UsageError(NOT_FOR_OWNERS)
