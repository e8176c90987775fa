"""One message, n recipients, n replies: decided and stored without any socket.

Trouble with a key, the store, the directory, the crypto or the disk is a 4xx and leaves no file:
there is no way through this package that stores plaintext for an encrypted account.
"""

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import SitePublic
from lmtp_atrest.delivery.copy import Storage, StoredCopy
from lmtp_atrest.delivery.recipients import Recipient, Recipients
from lmtp_atrest.delivery.replies import Refused, Reply, reply_for
from lmtp_atrest.delivery.trace import Client, trace_lines
from lmtp_atrest.delivery.transaction import Transaction
from lmtp_atrest.delivery.trouble import report
from lmtp_atrest.delivery.unclear import UnclearEnds
from lmtp_atrest.directory import Directory
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.names import Address, Names

__all__ = ["Client", "Delivery", "Recipient", "Refused", "Reply", "Transaction", "reply_for"]

# Where threads wait for the disk: 16 at once had 2.4 times the syncs of one.
THREADS = 16


class Delivery:
    """What the LMTP sessions of one process share."""

    def __init__(
        self,
        config: Config,
        records: Records,
        site: SitePublic,
        directory: Directory,
        names: Names,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="delivery")
        self._recipients = Recipients(
            config, records, site, directory, names, self._executor, clock
        )
        self._storage = Storage(config)
        self._unclear = UnclearEnds(config.lmtp.unclear_ends)
        self._host = socket.gethostname()

    async def recipient(self, address: Address) -> Recipient:
        """Accept a recipient, or raise Refused with its reply: 550 only where that is certain."""
        try:
            return await self._recipients.resolve(address)
        except Refused:
            raise
        except Exception as error:
            report("delivery", "recipient not accepted", error, recipient=str(address))
            raise Refused(reply_for(error)) from error

    def begin(
        self, sender: Address | None, recipients: Sequence[Recipient], client: Client
    ) -> Transaction:
        """Start a message for recipients that were accepted; the same mailbox gets one copy."""
        message_id = secrets.token_hex(8)
        now = time.time()

        def make_trace(recipient: Recipient) -> bytes:
            return trace_lines(sender, recipient.address, client, self._host, message_id, now)

        return Transaction(
            message_id,
            sender,
            recipients,
            lambda recipient: StoredCopy(self._storage, self._recipients, recipient),
            make_trace,
            self._unclear,
            self._executor,
            self._storage.pace,
        )

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        self._executor.shutdown()
        self._storage.close()
        self._unclear.close()
