"""What an operator can get wrong at a site, and what `account enable` refuses because of it.

Facts are collected first (`facts`, `services`, `postfix`), then each check looks at them and says
what it finds. `enable` and `doctor` use the same checks.
"""

from collections.abc import Callable, Iterator

from lmtp_atrest.doctor import logins, secrecy, storage
from lmtp_atrest.doctor.facts import Facts
from lmtp_atrest.doctor.findings import Finding

# Of what is configured, in the order in which they are printed.
CHECKS: dict[str, Callable[[Facts], Iterator[Finding]]] = {
    "Dovecot's version": storage.readers,
    "mailbox format": storage.mailbox_format,
    "place of INBOX": storage.inbox,
    "folders": storage.folders,
    "indexes": storage.indexes,
    "attachments": storage.attachments,
    "copies for several recipients": storage.hard_links,
    "shared folders": storage.namespaces,
    "replication": storage.replication,
    "passdbs": logins.passdbs,
    "userdbs": logins.userdbs,
    "names of users": logins.username,
    "cache of logins": logins.auth_cache,
    "programs after login": logins.post_login,
    "the Lua script": secrecy.script,
    "locations of single users": secrecy.own_location,
    "mail plugins": secrecy.plugins,
    "users without encryption": secrecy.without_key,
    "directories in RAM": secrecy.in_ram,
    "messages that do not open": secrecy.reading,
}


def refusals(facts: Facts) -> list[Finding]:
    """Why no account should be encrypted here: mail would be lost, hidden, or in clear."""
    return [found for check in CHECKS.values() for found in check(facts) if found.refuses]
