"""The command line, called in this process: a start for each call would take a second."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lmtp_atrest.cli import run


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    returncode: int
    output: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.output.decode()


def call(
    *arguments: str | Path, secret: str | None = None, stdin: bytes = b"", **secrets: Any
) -> Result:
    """One command; `secret`, and `new_password=` or whatever its options are called, are given to
    it on descriptors of their own."""
    command = [str(argument) for argument in arguments]
    given: dict[str, str] = {**secrets, **({"password": secret} if secret is not None else {})}
    descriptors = []
    for name, value in given.items():
        reading, writing = os.pipe()
        os.write(writing, value.encode() + b"\n")
        os.close(writing)
        command += [f"--{name.replace('_', '-')}-fd", str(reading)]
        descriptors.append(reading)
    streams = [io.TextIOWrapper(io.BytesIO(content)) for content in (stdin, b"", b"")]
    with (
        patch.object(sys, "stdin", streams[0]),
        patch.object(sys, "stdout", streams[1]),
        patch.object(sys, "stderr", streams[2]),
    ):
        code = run(command)
    for reading in descriptors:
        os.close(reading)
    written = []
    for stream in streams[1:]:
        stream.flush()
        written.append(stream.buffer.getvalue())
    return Result(code, written[0], written[1].decode())
