from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.crypto import checkdigest

IN_USE = [chain for chain in (checkdigest.chain_in_c(), checkdigest.chain_in_python) if chain]


@given(st.binary(min_size=32, max_size=32))
def test_compiled_or_not_the_digest_is_the_same(first: bytes) -> None:
    assert len({chain(first) for chain in IN_USE}) == 1


def test_without_the_compiled_library_python_does_it(tmp_path: Path) -> None:
    assert checkdigest.chain_in_c(tmp_path / "libcheckdigest.so") is None
    (tmp_path / "broken.so").write_bytes(b"not a library")
    assert checkdigest.chain_in_c(tmp_path / "broken.so") is None
