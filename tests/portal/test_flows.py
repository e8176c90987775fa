"""What users come for, from the first page to the last."""

import re

from tests.portal.browsing import Browser
from tests.unlock.conftest import ALICE, BOB
from tests.unlock.running import Running

CODE = re.compile(r'id="code">([0-9A-Z]{4}(?:-[0-9A-Z]{4}){6})<')


async def test_bob_switches_encryption_on_and_keeps_the_code(visitor: Browser) -> None:
    await visitor.sign_in(BOB, "bob's own password")
    assert "Your mail is not encrypted" in visitor.text
    await visitor.submit("switch-on", secret="bob's own password", understood="yes")
    code = CODE.search(visitor.page.text)
    assert code, visitor.text
    assert "<svg" in visitor.page.text
    await visitor.post("code-check", {"token": visitor.token, "group": "AAAA"})
    assert "not the last group" in visitor.text
    assert code[1] not in visitor.page.text
    await visitor.post("code-check", {"token": visitor.token, "group": code[1][-4:].lower()})
    assert "Your mail is encrypted" in visitor.text
    assert "safe on paper" in visitor.text


async def test_alice_signs_in(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    assert "Your mail is encrypted" in visitor.text
    assert "Your mailbox is closed" in visitor.text
    assert len(unlock.service.vaults) == 0
