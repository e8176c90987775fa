import pytest

from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Damaged
from lmtp_atrest.secret import Secret

KEY = VaultKey(bytes(range(32)))
PRIVATE = Secret(b"PKCS#8 DER of a private key")
WHERE = ("a1" * 16, "b2" * 16, b"k" * 32)
SEALED = KEY.seal(PRIVATE, *WHERE)


def test_a_sealed_private_key_comes_back() -> None:
    assert KEY.unseal(SEALED, *WHERE) == PRIVATE
    assert KEY.seal(PRIVATE, *WHERE) != SEALED  # a fresh nonce each time


@pytest.mark.parametrize(
    "where",
    [("c3" * 16, WHERE[1], WHERE[2]), (WHERE[0], "c3" * 16, WHERE[2]), (*WHERE[:2], b"x" * 32)],
    ids=["account", "vault", "key id"],
)
def test_a_private_key_moved_elsewhere_is_damaged(where: tuple[str, str, bytes]) -> None:
    with pytest.raises(Damaged):
        KEY.unseal(SEALED, *where)


@pytest.mark.parametrize(
    "sealed",
    [b"", SEALED[:23], SEALED[:-1], SEALED + b"x", b"\0" * 60],
    ids=["empty", "nonce cut", "end cut", "longer", "zeros"],
)
def test_anything_else_is_damaged(sealed: bytes) -> None:
    with pytest.raises(Damaged):
        KEY.unseal(sealed, *WHERE)


def test_another_vault_key_opens_nothing_and_commits_to_something_else() -> None:
    other = VaultKey.generate()
    with pytest.raises(Damaged):
        other.unseal(SEALED, *WHERE)
    assert other.commitment() != KEY.commitment()
    assert KEY.commitment() != KEY.reveal()
