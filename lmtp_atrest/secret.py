"""Bytes that must not be printed, logged, pickled or compared in variable time.

Python cannot promise wiping: `bytes` are immutable and copied freely. The promise is a short life
in a small process whose memory is locked and never dumped; this type keeps a secret out of logs,
tracebacks and stores by refusing every road there but `reveal()`.
"""

import hmac
from typing import NoReturn


class Secret:
    """Secret bytes. `reveal()` is the only way to them, so `grep reveal` lists every use."""

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves, for the call that needs them."""
        return self.__value

    def __len__(self) -> int:
        return len(self.__value)

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.__value, other.__value)

    __hash__ = None  # type: ignore[assignment]  # a hash would be a stable trace of the secret

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        message = "a Secret is never serialised"
        raise TypeError(message)
