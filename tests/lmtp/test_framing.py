from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.lmtp.framing import COMMAND_LIMIT, CommandLine, CommandLines, DataDecoder

END = b"\r\n.\r\n"
ODD = [b"\r", b"\n", b".", b"\0", b"x"]


def decode(*blocks: bytes) -> tuple[bytes, bytes]:
    decoder = DataDecoder()
    message = b""
    for number, block in enumerate(blocks):
        message += decoder.feed(block)
        if decoder.done:
            return message, decoder.rest + b"".join(blocks[number + 1 :])
    raise AssertionError("the message did not end")


def plainly(wire: bytes) -> tuple[bytes, bytes]:
    """The rule again, octet by octet, as slow and as simple as it can be told."""
    message, position = b"", 0
    at_line_start = True
    while True:
        if at_line_start and wire[position : position + 3] == b".\r\n":
            return message, wire[position + 3 :]
        if at_line_start and wire[position : position + 1] == b".":
            position += 1
        octet = wire[position : position + 1]
        assert octet, "the message did not end"
        at_line_start = wire[position : position + 2] == b"\r\n"
        if at_line_start:
            message += b"\n"
            position += 2
        else:
            message += b" " if octet == b"\r" else octet
            position += 1


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\n"),
        (b"a\r\n.\r\n", b"a\n"),
        (b"..\r\n.\r\n", b".\n"),
        (b"a\r\n..b\r\n.\r\n", b"a\n.b\n"),
        (b".a\r\n.\r\n", b"a\n"),
        (b"a\0b\xff\r\n.\r\n", b"a\0b\xff\n"),
        (b"a\rb\r\n.\r\n", b"a b\n"),
        (b"a\nb\r\n.\r\n", b"a\nb\n"),
        (b"a\r\r\n.\r\n", b"a \n"),
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\n\nb\n"),
        (b"a\r.\rb\r\n.\r\n", b"a . b\n"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\n b\n"),
    ],
)
def test_the_rule_for_ends_dots_and_odd_bytes(wire: bytes, message: bytes) -> None:
    assert decode(wire + b"QUIT\r\n") == (message, b"QUIT\r\n")


def test_only_crlf_dot_crlf_ends_a_message() -> None:
    for length in range(1, 7):
        for odd in product(ODD, repeat=length):
            wire = b"a" + b"".join(odd)
            decoder = DataDecoder()
            decoder.feed(wire)
            assert decoder.done == (END in wire), wire


def test_what_stands_around_the_end_is_read_as_the_plain_rule_says() -> None:
    strings = [b"".join(odd) for length in range(5) for odd in product(ODD, repeat=length)]
    for odd in strings:
        for wire in (odd + END, b"a" + odd + END + b"R", b"a\r\n" + odd + END, b"a" + END + odd):
            assert decode(wire) == plainly(wire), wire


@given(st.lists(st.sampled_from([*ODD, b"\r\n", b"\r\n.", b"abc"]), max_size=30), st.data())
def test_any_split_gives_the_same_message(parts: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(parts) + END + b"tail"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    blocks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert decode(*blocks) == decode(*(bytes([octet]) for octet in wire)) == plainly(wire)


@given(st.binary(max_size=200))
def test_a_stored_message_has_no_cr(content: bytes) -> None:
    message, _ = decode(content + END)
    assert b"\r" not in message


def test_a_line_of_any_length_is_held_in_bounded_memory() -> None:
    decoder = DataDecoder()
    block = b"x" * 65536
    for _ in range(64):
        assert len(decoder.feed(block)) <= len(block) + 4


def lines(*blocks: bytes) -> list[CommandLine]:
    reader, found = CommandLines(), []
    for block in blocks:
        reader.feed(block)
        while (line := reader.next_line()) is not None:
            found.append(line)
    return found


BAD = CommandLine(b"", good=False)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"NOOP\r\n", [CommandLine(b"NOOP")]),
        (b"\r\n", [CommandLine(b"")]),
        (b"A\r\nB\r\n", [CommandLine(b"A"), CommandLine(b"B")]),
        (b"NOOP\n", [BAD]),
        (b"NO\nOP\r\n", [BAD, CommandLine(b"OP")]),
        (b"NO\rOP\r\n", [BAD]),
        (b"NO\0OP\r\n", [BAD]),
        (b"NOOP\r\r\n", [BAD]),
        (b"x" * (COMMAND_LIMIT + 1) + b"\r\nNOOP\r\n", [BAD, CommandLine(b"NOOP")]),
        (b"x" * 100_000 + b"\r\nNOOP\r\n", [BAD, CommandLine(b"NOOP")]),
        (b"x" * (COMMAND_LIMIT - 1) + b"\r\n", [CommandLine(b"x" * (COMMAND_LIMIT - 1))]),
        (b"NOOP\r", []),
    ],
)
def test_command_lines_end_at_crlf_only(wire: bytes, expected: list[CommandLine]) -> None:
    assert lines(wire) == expected
    assert lines(*(bytes([octet]) for octet in wire)) == expected
