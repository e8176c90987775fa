"""What whoever walks over mail hears once a grant is over."""

import asyncio

import pytest

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.unlock.client import GrantUnwrap, SocketUnwrap, SyncClient
from lmtp_atrest.unlock.requests import ConvertDone, ConvertGrant, Role
from tests.unlock.conftest import ALICE, PASSWORD
from tests.unlock.running import Running


async def test_the_end_of_a_grant_or_session_is_not_taken_for_mail_that_moved(
    unlock: Running,
) -> None:
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    sealed = dcrypt.seal(PublicKey.from_der(record.public_key), b"Subject: x\n\nx\n")
    path = unlock.path(Role.ADMIN)
    async with await unlock.connect(Role.ADMIN) as client:
        granted = await client.ask(ConvertGrant(ALICE, PASSWORD, "verify", "10"))
        grant = str(granted["grant"])
        by_grant = GrantUnwrap(path, Role.ADMIN, grant)
        opened = await asyncio.to_thread(dcrypt.open_bytes, sealed, by_grant)
        assert opened == b"Subject: x\n\nx\n"
        await client.ask(ConvertDone(grant))
    with pytest.raises(TemporaryFailure, match="closed again"):
        await asyncio.to_thread(dcrypt.open_bytes, sealed, by_grant)
    by_grant.close()

    def by_session() -> None:
        with SyncClient(path, Role.ADMIN) as session:
            dcrypt.open_bytes(sealed, SocketUnwrap(session, "no such token"))

    with pytest.raises(TemporaryFailure, match="closed again"):
        await asyncio.to_thread(by_session)
