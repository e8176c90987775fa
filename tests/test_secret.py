import copy
import pickle  # noqa: TID251 - to show that it refuses

import pytest

from lmtp_atrest.secret import Secret


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(b"canary")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>30}", f"{[secret]}"):
        assert "canary" not in text
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("export", [pickle.dumps, copy.copy, copy.deepcopy, hash])
def test_a_secret_is_neither_serialised_nor_hashed(export: object) -> None:
    with pytest.raises(TypeError):
        export(Secret(b"canary"))  # type: ignore[operator]


def test_secrets_compare_by_value_and_with_nothing_else() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    assert len(Secret(b"abc")) == 3
    assert not Secret(b"")
