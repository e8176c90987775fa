"""Index caches that Dovecot keeps away from the mail are gone once that is encrypted."""

from pathlib import Path

import pytest

from lmtp_atrest import config as config_module
from lmtp_atrest.conversion import Direction, Job, Place, States, convert
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.doctor import storage
from lmtp_atrest.doctor.facts import Facts
from lmtp_atrest.doctor.findings import Finding
from lmtp_atrest.dovecot import Doveconf
from tests.integration.site import ALICE
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host

pytestmark = pytest.mark.peers

FOLDERS = ("INBOX", "a", "a/b", "R&-D", "Entw&APw-rfe")
MESSAGE = b"Subject: canary\r\nFrom: eve@example.net\r\n\r\nx\r\n"
SETTINGS = """
mail: {{root: {mail}, index: [{index}]}}
lmtp: {{folder_style: {style}}}
conversion: {{state: "sqlite:///{mail}/conversion.db"}}
"""
# In the words of 2.3 and of 2.4, and what we are told.
PLACES = {
    "index": ("INDEX={}/%d/%n", "mail_index_path = {}/%{{user|domain}}/%{{user|username}}"),
    "cache": ("INDEXCACHE={}/%d/%n", "mail_cache_path = {}/%{{user|domain}}/%{{user|username}}"),
}


@pytest.mark.parametrize("style", ["maildir++", "fs"])
@pytest.mark.parametrize("kept", PLACES)
def test_no_cache_is_left(host: Host, shared: Path, style: str, kept: str) -> None:
    elsewhere = shared / "indexes"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    dovecot = Dovecot(host, shared, {ALICE: "hers"})
    old, new = (words.format(elsewhere) for words in PLACES[kept])
    if dovecot.version == "2.3":
        dovecot.conf += f"mail_location = maildir:~/Maildir:LAYOUT={style}:{old}\n"
    else:
        dovecot.conf += f"mailbox_list_layout = {style}\n{new}\n"
    dovecot.conf += "namespace inbox {\n  inbox = yes\n  separator = /\n}\n"
    with dovecot:
        read(dovecot)
        template = f'"{elsewhere}/{{domain}}/{{local}}"'
        told = SETTINGS.format(mail=dovecot.mail, index=template, style=style)
        assert found_by_doctor(dovecot, told.replace(template, "")) == ["index-elsewhere"]
        assert found_by_doctor(dovecot, told) == []
        assert len(list(elsewhere.rglob("dovecot.index.cache"))) == len(FOLDERS)
        encrypt(dovecot, told)
        holders = [p for p in shared.rglob("*") if p.is_file() and b"canary" in p.read_bytes()]
        assert holders == []


def read(dovecot: Dovecot) -> None:
    """A client fills the cache of each folder."""
    client = dovecot.login(ALICE, "hers")
    for folder in FOLDERS:
        client.create(f'"{folder}"')
        client.append(f'"{folder}"', "", "", MESSAGE)
        client.select(f'"{folder}"')
        assert client.fetch("1:*", "(ENVELOPE BODYSTRUCTURE)")[0] == "OK"
    client.logout()


def found_by_doctor(dovecot: Dovecot, settings: str) -> list[str]:
    facts = Facts(config_module.parse(settings), Doveconf.parse(dovecot.doveconf("-n")))
    found: list[Finding] = list(storage.indexes(facts))
    return [finding.name for finding in found]


def encrypt(dovecot: Dovecot, settings: str) -> None:
    config = config_module.parse(settings)
    home = dovecot.mail / ALICE
    place = Place.of(config, "0" * 32, str(home), str(home / "Maildir"), 0, (ALICE,))
    states = States(config.conversion.state)
    states.open()
    key = PrivateKey.generate(Curve.PRIME256V1)
    counts, clean = convert(place, Job(Direction.ENCRYPT, key.public), states)
    states.close()
    assert (counts.done, clean) == (len(FOLDERS), True)
