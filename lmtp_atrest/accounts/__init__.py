"""Everything done with an account's keys. Only the unlock service holds an `Accounts`.

`Ledger` reads and commits; `Accounts` makes accounts and opens vaults; `SlotChanges`,
`Generations` and `AdminRecovery` change what there is. Methods are synchronous and run in threads:
opening a slot costs an Argon2id run, and every change waits for a durable commit.
"""

from lmtp_atrest.accounts.accounts import Accounts, AccountView, Opened, Settings, SlotView
from lmtp_atrest.accounts.admin import AdminRecovery, AdminStatus
from lmtp_atrest.accounts.certificates import OwnCertificates, about_old_mail
from lmtp_atrest.accounts.generations import Generations
from lmtp_atrest.accounts.ledger import KEEP_CLOSED_MS, Ledger
from lmtp_atrest.accounts.slotchanges import SlotChanges

__all__ = [
    "KEEP_CLOSED_MS",
    "AccountView",
    "Accounts",
    "AdminRecovery",
    "AdminStatus",
    "Generations",
    "Ledger",
    "Opened",
    "OwnCertificates",
    "Settings",
    "SlotChanges",
    "SlotView",
    "about_old_mail",
]
