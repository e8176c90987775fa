"""The command line, called in this process: a start for each call would take a second."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
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


def call(*arguments: str | Path, stdin: bytes = b"", secret: str | None = None) -> Result:
    """One command; `secret` is given to it on a descriptor of its own."""
    command = [str(argument) for argument in arguments]
    reading = None
    if secret is not None:
        reading, writing = os.pipe()
        os.write(writing, secret.encode() + b"\n")
        os.close(writing)
        command += ["--password-fd", str(reading)]
    streams = [io.TextIOWrapper(io.BytesIO(content)) for content in (stdin, b"", b"")]
    with (
        patch.object(sys, "stdin", streams[0]),
        patch.object(sys, "stdout", streams[1]),
        patch.object(sys, "stderr", streams[2]),
    ):
        code = run(command)
    if reading is not None:
        os.close(reading)
    written = []
    for stream in streams[1:]:
        stream.flush()
        written.append(stream.buffer.getvalue())
    return Result(code, written[0], written[1].decode())
