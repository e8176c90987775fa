"""Real-looking messages for the demo and the tests: `python -m tests.messages DIRECTORY`.

Each file is a message as an MTA hands it over, with CRLF line ends. Deterministic, so that what is
read back can be compared, and large ones need no file in the repository.
"""

import hashlib
import sys
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

LARGE = 20 << 20
WHEN = "Tue, 24 Nov 2026 08:30:00 +0000"
CAROL = Address("Carol Müller", "carol", "example.net")
ALICE = Address("Alice", "alice", "example.org")


def _noise(count: int) -> bytes:
    """Bytes that look random and are always the same."""
    return hashlib.shake_128(b"lmtp-atrest test messages").digest(count)


def _message(number: int, subject: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = CAROL, ALICE, subject
    message["Date"] = WHEN
    message["Message-ID"] = f"<demo-{number}@example.net>"
    return message


def short_text() -> bytes:
    """A few lines of ASCII, one of them a dot."""
    message = _message(1, "Lunch on Thursday?")
    message.set_content("Shall we say one o'clock, at the usual place?\n.\nCarol\n")
    return message.as_bytes()


def utf8_headers() -> bytes:
    """Encoded words in the headers and quoted-printable text."""
    message = _message(2, "Grüße aus Zürich, 東京 и Москва")
    message.set_content("Der Zug kam pünktlich an.\n", cte="quoted-printable")
    return message.as_bytes()


def eight_bit() -> bytes:
    """8BITMIME: raw UTF-8 in the body, and one line of 2,000 octets."""
    message = _message(3, "Notes of the meeting")
    message.set_content(f"Blöße, Öl, çédille.\n{'ü' * 1000}\n", cte="8bit")
    return message.as_bytes()


def multipart() -> bytes:
    """Text, HTML and an attachment of 300 KB."""
    message = _message(4, "The contract, for your signature")
    message.set_content("Please find the contract attached.\n")
    message.add_alternative("<p>Please find the <b>contract</b> attached.</p>\n", subtype="html")
    message.add_attachment(
        _noise(300_000), maintype="application", subtype="pdf", filename="contract.pdf"
    )
    return message.as_bytes()


def large() -> bytes:
    """A message of 20 MB."""
    message = _message(5, "Scans of all pages")
    message.set_content("Twenty megabytes of scans.\n")
    message.add_attachment(
        _noise(LARGE * 57 // 78), maintype="image", subtype="tiff", filename="scans.tif"
    )
    return message.as_bytes()


def no_final_newline() -> bytes:
    """A body whose last line ends without a line end."""
    return short_text().replace(b"demo-1@", b"demo-6@") + b"P.S. see you"


def spam() -> bytes:
    """What a spam filter marked for the Junk folder."""
    return b"X-Spam-Flag: YES\r\n" + short_text().replace(b"demo-1@", b"demo-7@")


ALL = {
    "1-short-text": short_text,
    "2-utf8-headers": utf8_headers,
    "3-eight-bit": eight_bit,
    "4-multipart": multipart,
    "5-large": large,
}


def write_all(directory: Path) -> Iterator[Path]:
    """Write one .eml file for each message of the demo."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in ALL.items():
        path = directory / f"{name}.eml"
        path.write_bytes(make())
        yield path


if __name__ == "__main__":
    for _path in write_all(Path(sys.argv[1])):
        pass
