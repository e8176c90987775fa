"""docs/portal.md and what is deployed with it."""

import re
from pathlib import Path

import pytest

from lmtp_atrest import config
from lmtp_atrest.portal.address import Address

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/portal.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_is_a_configuration(block: str) -> None:
    config.parse(block)


@pytest.mark.parametrize("name", ["nginx/lmtp-atrest.conf", "caddy/Caddyfile"])
def test_the_proxies_lead_to_where_the_document_listens(name: str) -> None:
    portal = config.parse(BLOCKS[0]).portal
    text = (ROOT / "deploy" / name).read_text()
    assert f'portal: {{listen: "{portal.listen}", url: "{portal.url}"}}' in text
    assert re.search(rf"(proxy_pass http://|reverse_proxy /keys/\* ){portal.listen}\b", text)
    assert f"{Address.of(portal.url).path}/" in text
