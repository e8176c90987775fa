#!/usr/bin/env python3
"""Print the subjects of an encrypted Maildir folder, through the reader socket of lmtp-atrest.

    read_folder.py /run/lmtp-atrest/unlock/reader.sock NAME FOLDER < password

All that an IMAP server has to do, by `unwrap` only: no private key ever gets here. AES-256-GCM is
the one thing the standard library lacks.
"""

import base64
import email
import json
import socket
import sys
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

path, name, folder = sys.argv[1:]
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
lines = connection.makefile("rwb")
greeting = json.loads(lines.readline() or "{}")  # end of file: not one of the socket's peers
if (greeting.get("version"), greeting.get("role")) != (1, "reader"):
    sys.exit("not a reader socket of version 1")


def ask(**request: str) -> dict[str, str]:
    """One request, one reply."""
    lines.write(json.dumps(request).encode() + b"\n")
    lines.flush()
    return json.loads(lines.readline())


def b64(data: bytes) -> str:
    """Names, secrets and headers travel so."""
    return base64.b64encode(data).decode()


secret = sys.stdin.buffer.readline().rstrip(b"\n")
session = ask(op="open", name=b64(name.encode()), secret=b64(secret), source="read_folder")
if session["result"] != "opened":
    sys.exit(f"not opened: {session['result']}")
for file in sorted([*Path(folder, "cur").iterdir(), *Path(folder, "new").iterdir()]):
    message = file.read_bytes()
    if message.startswith(b"CRYPTED\x03\x07\x02"):  # else it is plain
        begin = int.from_bytes(message[14:18], "big")
        reply = ask(op="unwrap", token=session["token"], header=b64(message[:begin]))
        if reply["result"] != "unwrapped":
            print(f"[{reply['result']}]")
            continue
        key = base64.b64decode(reply["key"])  # decrypt() verifies the tag before it returns
        message = AESGCM(key[:32]).decrypt(key[32:44], message[begin:], key[44:])
    print(email.message_from_bytes(message)["Subject"])
ask(op="lock", token=session["token"])
