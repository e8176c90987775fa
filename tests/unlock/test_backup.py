"""Digests of rows: page by page, of what lies in the stores, and of nothing else."""

from typing import Any

import pytest

from lmtp_atrest.crypto.records import BadDocument
from lmtp_atrest.unlock import backup
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import BackupRows, BackupSeal, Role
from tests.unlock.conftest import ALICE, BOB
from tests.unlock.running import Running


async def rows(unlock: Running, *arguments: str) -> Reply:
    async with await unlock.connect(Role.ADMIN) as client:
        return await client.ask(BackupRows(*arguments))


def tables(digests: dict[str, str]) -> list[str]:
    return sorted(name.partition("/")[0] for name in digests)


async def test_all_accounts_come_page_by_page_removed_ones_too(
    unlock: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "PAGE", 1)
    unlock.site.accounts.remove(BOB)
    found: dict[str, Any] = {}
    after = ""
    for _ in range(3):
        page = await rows(unlock, "", after)
        assert tables(page["site"]) in ([], ["site"])
        found |= {account["names"][0]: account for account in page["accounts"]}
        after = page["next"]
    assert after == ""
    assert found[BOB]["state"] == "removed"
    assert tables(found[BOB]["rows"]) == ["accounts"]
    assert tables(found[ALICE]["rows"])[:2] == ["accounts", "private_keys"]
    one = await rows(unlock, ALICE)
    assert one["accounts"] == [found[ALICE]]
    assert one["site"] == {}


async def test_what_changes_in_a_store_changes_its_digest(unlock: Running) -> None:
    before = (await rows(unlock, ALICE))["accounts"][0]["rows"]
    assert (await rows(unlock, ALICE))["accounts"][0]["rows"] == before
    database = unlock.site.vaults.store
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE slots SET label = 'another'")
    after = (await rows(unlock, ALICE))["accounts"][0]["rows"]
    changed = {name for name in before if before[name] != after[name]}
    assert set(tables(dict.fromkeys(changed, ""))) == {"slots"}


async def test_a_seal_is_signed_and_is_no_record(unlock: Running) -> None:
    async with await unlock.connect(Role.ADMIN) as client:
        reply = await client.ask(BackupSeal("7", "ab" * 32))
    document = str(reply["document"]).encode()
    seal = unlock.site.public.verify_manifest(document)
    assert (seal.lines, seal.digest) == (7, bytes.fromhex("ab" * 32))
    with pytest.raises(BadDocument):
        unlock.site.public.verify(document)
