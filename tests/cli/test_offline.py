import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from lmtp_atrest.config import Config
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.secret import Secret
from tests.cli.calling import call

VECTORS = Path(__file__).parents[1] / "vectors" / "dcrypt"
SEALED = VECTORS / "worked-example.crypt"
KEY = VECTORS / "keys" / "prime256v1.key.pem"


def write_config(root: Path) -> Path:
    path = root / "c.yaml"
    path.write_text(f"""
lmtp: {{listen: ["unix:{root}/lmtp"], unclear_ends: {root}/u}}
mail: {{root: {root}/mail}}
site: {{key: {root}/k, public: {root}/p}}
keystore:
  records: sqlite:///{root}/r.db
  vaults: sqlite:///{root}/v.db
  pins: sqlite:///{root}/s.db
unlock: {{sockets: {root}/unlock, cache_root: {root}/cache, evict: {{socket: null}}}}
""")
    return path


def test_inspect_says_what_can_be_told_without_a_key() -> None:
    facts = json.loads(call("message", "inspect", "--json", SEALED).stdout)
    assert facts["key_id"].startswith("5ccee0b6504e011f")
    assert (facts["rounds"], facts["header_bytes"], facts["plaintext_bytes"]) == (2048, 255, 15)
    assert "key id:" in call("message", "inspect", SEALED).stdout
    plain = json.loads(call("message", "inspect", "--json", "-", stdin=b"Subject: x\n").stdout)
    assert plain == {"format": "not encrypted", "size": 11}


def test_open_takes_a_file_or_standard_input() -> None:
    plain = SEALED.with_suffix(".plain").read_bytes()
    assert call("message", "open", "--key", KEY, SEALED).output == plain
    piped = call("message", "open", "--key", KEY, "-", stdin=SEALED.read_bytes())
    assert piped.output == plain


def test_what_was_sealed_here_opens_here_and_prints_nothing_when_damaged(tmp_path: Path) -> None:
    key = PrivateKey.generate(Curve.PRIME256V1)
    secret, public, file = (tmp_path / name for name in ("key.pem", "pub.pem", "sealed"))
    secret.write_bytes(key.encrypted_pem(Secret(b"pw")))
    public.write_bytes(key.public.pem())
    sealed = call("message", "seal", "--key", public, "-", stdin=b"hello\n").output
    open_ = ("message", "open", "--key", secret)
    file.touch()
    empty = call(*open_, file, secret="pw")
    assert (empty.returncode, empty.output) == (0, b"")  # an empty file is an empty message
    file.write_bytes(sealed)
    assert call(*open_, file, secret="pw").output == b"hello\n"
    wrong = call(*open_, file, secret="no")
    assert (wrong.returncode, wrong.output) == (7, b"")
    assert "does not open this key" in wrong.stderr
    file.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    bad = call(*open_, file, secret="pw")
    assert (bad.returncode, bad.output) == (8, b"")


def test_a_key_file_that_is_missing_or_no_key_is_an_error(tmp_path: Path) -> None:
    assert call("message", "open", "--key", tmp_path / "none", SEALED).returncode == 2
    (tmp_path / "junk").write_text("junk")
    assert call("message", "seal", "--key", tmp_path / "junk", "-").returncode == 8


def test_init_is_repeatable_and_config_shows_what_is_in_force(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    made = call("init", "-c", path)
    assert made.returncode == 0, made.stderr
    assert "made" in made.stdout
    assert call("init", "-c", path).stdout == ""
    shown = yaml.safe_load(call("config", "show", "-c", path).stdout)
    assert shown["atrest"] == Config().model_dump(mode="json")["atrest"]
    assert json.loads(call("config", "show", "-c", path, "--json").stdout) == shown
    assert "without fault" in call("config", "check", "-c", path).stdout


def test_init_writes_the_commented_configuration_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtp_atrest.site.initialise", lambda _config: [])
    path = tmp_path / "etc" / "c.yaml"
    assert f"made {path}" in call("init", "-c", path).stdout
    assert path.read_text().startswith("# lmtp-atrest: the whole configuration")


def test_stores_and_site_keys_are_looked_after_offline(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    call("init", "-c", path)
    upgraded = call("keystore", "upgrade", "-c", path).stdout
    assert upgraded.split()[:3] == ["STORE", "BEFORE", "NOW"]
    assert "no account is older" in call("keystore", "accept-restore", "-c", path).stdout
    assert call("site-key", "retire", "-c", path).returncode == 2
    assert call("site-key", "add", "-c", path).stdout.startswith("added ")
    assert call("site-key", "resign", "-c", path).stdout == "signed 0 records anew\n"
    assert call("site-key", "retire", "-c", path).stdout.startswith("retired ")


def test_all_faults_of_a_configuration_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lmtp: {lisen: [], idle_timeout: 5}\nmial: {}\n")
    result = call("config", "check", "-c", path)
    assert result.returncode == 3
    assert result.stderr.count("lmtp-atrest: ") == 3


@pytest.mark.parametrize("service", ["lmtp", "unlock"])
def test_a_service_refuses_a_store_of_another_schema_and_says_what_to_run(
    tmp_path: Path, service: str
) -> None:
    path = write_config(tmp_path)
    call("init", "-c", path)
    for name in ("r", "v"):
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'other'")
    command = [sys.executable, "-m", "lmtp_atrest", "serve", "-c", str(path), "--only", service]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert result.returncode == 3
    assert b"keystore upgrade" in result.stdout


def test_a_unix_socket_that_another_server_listens_on_is_not_taken(tmp_path: Path) -> None:
    from lmtp_atrest.config import Listener
    from lmtp_atrest.daemon import bind
    from lmtp_atrest.errors import UsageError

    listener = Listener.parse(f"unix:{tmp_path}/lmtp")
    first = bind(listener)
    with pytest.raises(UsageError, match="another server"):
        bind(listener)
    first.close()  # as after a kill: the name is left behind, nobody listens
    bind(listener).close()
