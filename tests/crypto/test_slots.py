from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtp_atrest.crypto.slots import (
    MEMORY_FLOOR,
    PASSES_FLOOR,
    Kdf,
    Slot,
    SlotKind,
    SlotState,
    digest_of,
    make_slot,
)
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import Damaged, WrongSecret
from lmtp_atrest.secret import Secret

ACCOUNT, VAULT = "a1" * 16, "b2" * 16
VAULT_KEY = VaultKey(bytes(range(32)))
CODE = Secret(b"a generated secret of far more than 128 bits")


def slot(secret: Secret = CODE, kdf: Kdf | None = None, **changes: str) -> Slot:
    return make_slot(
        secret,
        VAULT_KEY,
        account_id=changes.get("account_id", ACCOUNT),
        vault_id=changes.get("vault_id", VAULT),
        kind=SlotKind.RECOVERY_CODE,
        kdf=kdf or Kdf.for_generated_secret(),
        created=1,
    )


GENERATED = slot()


def test_a_password_opens_its_slot_and_another_does_not() -> None:
    made = slot(Secret(b"hunter2"), Kdf.argon2id(MEMORY_FLOOR, PASSES_FLOOR))
    assert made.open(Secret(b"hunter2")) == VAULT_KEY
    with pytest.raises(WrongSecret):
        made.open(Secret(b"hunter3"))


@settings(max_examples=30)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_only_the_same_secret_opens(secret: bytes, other: bytes) -> None:
    made = slot(Secret(secret))
    assert made.open(Secret(secret)) == VAULT_KEY
    if other != secret:
        with pytest.raises(WrongSecret):
            made.open(Secret(other))


def test_a_new_vault_key_is_sealed_without_any_secret() -> None:
    fresh = VaultKey.generate()
    assert GENERATED.resealed(fresh).open(CODE) == fresh


@pytest.mark.parametrize(
    "changes",
    [
        {"account_id": "c3" * 16},
        {"slot_id": "0" * 32},
        {"kind": SlotKind.APP_PASSWORD},
        {"kdf": Kdf.for_generated_secret()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_slot_moved_elsewhere_opens_with_no_secret(changes: dict[str, object]) -> None:
    with pytest.raises(WrongSecret):
        replace(GENERATED, **changes).open(CODE)  # type: ignore[arg-type]


def test_a_slot_moved_to_another_vault_is_damaged() -> None:
    with pytest.raises(Damaged, match="own secret"):
        replace(GENERATED, vault_id="0" * 32).open(CODE)


def test_a_vault_key_sealed_by_another_slot_is_damaged() -> None:
    with pytest.raises(Damaged):
        replace(GENERATED, sealed=slot(Secret(b"another")).sealed).open(CODE)


@pytest.mark.parametrize(
    "kdf",
    [
        Kdf(MEMORY_FLOOR - 1, 2, b"s" * 16),
        Kdf(MEMORY_FLOOR, 1, b"s" * 16),
        Kdf((1 << 30) + 1, 2, b"s" * 16),
        Kdf(MEMORY_FLOOR, 11, b"s" * 16),
        Kdf(MEMORY_FLOOR, 0, b"s" * 16),
        Kdf(0, 1, b"s" * 16),
        Kdf(MEMORY_FLOOR, 2, b"s" * 15),
    ],
    ids=str,
)
def test_kdf_parameters_out_of_bounds_are_damage_and_are_not_run(kdf: Kdf) -> None:
    with pytest.raises(Damaged, match="KDF"):
        replace(GENERATED, kdf=kdf).open(CODE)
    with pytest.raises(Damaged, match="KDF"):
        slot(kdf=kdf)


def test_a_password_slot_without_argon2id_is_damage() -> None:
    with pytest.raises(Damaged, match="too few bits"):
        replace(GENERATED, kind=SlotKind.PASSWORD).open(CODE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"suite": 2}, "suite"), ({"public_key": b"x"}, "lengths"), ({"sealed": b""}, "lengths")],
)
def test_what_no_slot_looks_like_is_damage(changes: dict[str, object], complaint: str) -> None:
    broken = replace(GENERATED, **changes)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=complaint):
        broken.open(CODE)
    with pytest.raises(Damaged, match=complaint):
        broken.resealed(VAULT_KEY)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_any_bit_changed_in_the_sealed_key_is_damage(position: int, bit: int) -> None:
    sealed = bytearray(GENERATED.sealed)
    sealed[position % len(sealed)] ^= 1 << bit
    with pytest.raises(Damaged):
        replace(GENERATED, sealed=bytes(sealed)).open(CODE)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "phone"},
        {"state": SlotState.PENDING},
        {"created": 2},
        {"sealed": b"x" * len(GENERATED.sealed)},
        {"kdf": Kdf(0, 0, b"t" * 16)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_covers_every_field(changes: dict[str, object]) -> None:
    other = replace(GENERATED, **changes)  # type: ignore[arg-type]
    assert other.digest() != GENERATED.digest()
    assert digest_of((other,)) != digest_of((GENERATED,))


def test_the_digest_of_slots_does_not_depend_on_their_order() -> None:
    second = slot(Secret(b"second"))
    assert digest_of((GENERATED, second)) == digest_of((second, GENERATED))
    assert digest_of((GENERATED,)) != digest_of((GENERATED, second))
