"""The configuration: one YAML file, read once, strict, passed on by argument.

Unknown or doubled keys, wrong units and loose file modes are refused, all faults at once. The
commented `config/lmtp-atrest.yaml` says what each setting does and equals these defaults.
"""

import os
import re
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from lmtp_atrest.errors import ConfigError

SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is None:
        message = "is a size with its unit, such as 50MiB (B, KiB, MiB, GiB)"
        raise ValueError(message)
    return int(match[1]) * SIZE_UNITS[match[2]]


def _duration(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*([smhd])", value) if isinstance(value, str) else None
    if match is None:
        message = "is a time with its unit, such as 30m (s, m, h, d)"
        raise ValueError(message)
    return int(match[1]) * TIME_UNITS[match[2]]


def _absolute(value: Any) -> Path:
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        message = "is an absolute path"
        raise ValueError(message)
    return Path(os.path.normpath(value))


def _size_text(size: int) -> str:
    unit = next(name for name in reversed(SIZE_UNITS) if size % SIZE_UNITS[name] == 0)
    return f"{size // SIZE_UNITS[unit]}{unit}"


def _duration_text(seconds: int) -> str:
    unit = next(name for name in reversed(TIME_UNITS) if seconds % TIME_UNITS[name] == 0)
    return f"{seconds // TIME_UNITS[unit]}{unit}"


Size = Annotated[int, BeforeValidator(_size)]
Duration = Annotated[int, BeforeValidator(_duration)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]


class Section(BaseModel):
    """A part of the file: immutable, without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)
