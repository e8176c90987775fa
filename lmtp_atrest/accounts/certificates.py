"""Accounts whose new mail is encrypted to their owner's own certificates.

Such an account is `encrypted` like others, so that delivery, pins and epochs treat it alike. It
has a vault only if it had one before: what was encrypted to the account's own key then still opens
with the password.
"""

from collections.abc import Sequence

from lmtp_atrest.accounts.accounts import Accounts
from lmtp_atrest.crypto.records import AccountRecord, Kind, State
from lmtp_atrest.errors import UsageError, WrongState
from lmtp_atrest.mime import Certificate


class OwnCertificates:
    """Sets and removes certificates; everything else is `Accounts`'s."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def set(self, record: AccountRecord, certificates: Sequence[Certificate]) -> AccountRecord:
        """Encrypt new mail to these, and to no others.

        UsageError where one does not serve, WrongState while the account is leaving, Conflict
        where it changed since `record` was read. The caller waits for the barrier (DESIGN 5).
        """
        kinds = {one.kind for one in certificates}
        if len(kinds) != 1:
            message = "an account encrypts to certificates of one kind: openpgp or smime"
            raise UsageError(message)
        if bad := [one for one in certificates if one.trouble]:
            raise UsageError("\n".join(f"{one.fingerprint}: {one.trouble}" for one in bad))
        if record.state is State.LEAVING:
            message = f"{record.names[0]} is leaving: account disable --undo, or finish it, first"
            raise WrongState(message)
        return self._accounts.change(
            record,
            state=State.ENCRYPTED,
            kind=kinds.pop(),
            certificates=tuple(dict.fromkeys(one.data for one in certificates)),
        )

    def remove(self, record: AccountRecord) -> AccountRecord:
        """Encrypt to the account's own key pair again or, where it never had one, not at all.

        WrongState unless the account has certificates, Conflict as `set`.
        """
        if not record.has_own_certificates:
            message = f"{record.names[0]} encrypts to no certificates"
            raise WrongState(message)
        state = State.ENCRYPTED if record.vault_id else State.PLAIN
        return self._accounts.change(record, state=state, kind=Kind.MAIL_CRYPT, certificates=())


def about_old_mail(before: AccountRecord, after: AccountRecord) -> str:
    """What becomes of the mail that is already there, for whoever changes the kind."""
    if before.has_own_certificates:
        old = "mail from before stays encrypted to the certificates of then: keep their keys"
    elif before.holds_ciphertext:
        old = "mail from before stays encrypted to the account's own key: the password opens it"
    else:
        old = "mail from before stays as it is, in plain: it is not converted to this kind"
    if after.state is State.PLAIN:
        return f"new mail is stored plain from now on; {old}"
    if not after.has_own_certificates:
        return f"new mail is encrypted to the account's own key again; {old}"
    return f"{old}; what mail programs store here themselves (Sent, Drafts) is not encrypted by us"
