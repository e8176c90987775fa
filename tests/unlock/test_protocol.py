import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock import protocol
from lmtp_atrest.unlock.protocol import (
    LINE_LIMIT,
    Lines,
    ProtocolError,
    Reply,
    encode_reply,
    encode_request,
    parse_reply,
    parse_request,
)
from lmtp_atrest.unlock.requests import OPERATIONS, Login, Open, Role, Status

LOGIN: dict[str, Any] = {
    "op": "login",
    "name": "YWxpY2U=",
    "secret": "Y2FuYXJ5",
    "service": "imap",
    "mechanism": "PLAIN",
    "site_verified": True,
}


def line(values: Any) -> bytes:
    return json.dumps(values).encode()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in LOGIN.items() if key != name}


def test_a_request_becomes_what_it_says() -> None:
    request = parse_request(line(LOGIN), Role.DOVECOT)
    assert request == Login("alice", "imap", "PLAIN", True, Secret(b"canary"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a JSON object"),
        (b"garbage", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'"login"', "not a JSON object"),
        (b"[" * 60_000, "not a JSON object"),
        (b'{"op": ' + b"9" * 5000 + b"}", "not a JSON object"),
        (b'{"op":"status"} x', "not a JSON object"),
        (b"\xef\xbb\xbf{}", "not a JSON object"),
        (b'{"op":"\xff"}', "not UTF-8"),
        (b"{}", "op is missing or not a string"),
        (b'{"op":7}', "op is missing or not a string"),
        (b'{"op":"canary"}', "unknown operation"),
        (b'{"op":"status","op":"status"}', "a field is given twice"),
        (line({**LOGIN, "canary": 1}), "a field that this operation does not have"),
        (line(without("name")), "name is missing"),
        (line(without("site_verified")), "site_verified is missing"),
        (line({**LOGIN, "site_verified": "true"}), "site_verified is not true or false"),
        (line({**LOGIN, "site_verified": 1}), "site_verified is not true or false"),
        (line({**LOGIN, "service": None}), "service is not a string"),
        (line({**LOGIN, "service": "im\nap"}), "service has characters that do not print"),
        (line({**LOGIN, "name": "alice!"}), "name is not base64"),
        (line({**LOGIN, "name": "é"}), "name is not base64"),
        (line({**LOGIN, "secret": ["x"]}), "secret is not a string"),
        (line({**LOGIN, "secret": "canary"}), "secret is not base64"),
    ],
)
def test_bad_lines_have_their_own_reason_and_repeat_nothing(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(raw, Role.ADMIN)
    assert caught.value.public == reason
    assert not caught.value.fatal
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("role", Role)
def test_each_socket_takes_its_own_operations_only(operation: str, role: Role) -> None:
    _, roles = OPERATIONS[operation]
    with pytest.raises(ProtocolError) as caught:
        parse_request(line({"op": operation, "extra": ""}), role)
    refused = caught.value.public == f"{operation} is not an operation of this socket"
    assert refused is (role not in roles)


def test_roles_are_as_the_design_says() -> None:
    by_role = {role: {name for name, (_, r) in OPERATIONS.items() if role in r} for role in Role}
    assert by_role[Role.DOVECOT] == {"login", "app-login", "lookup"}
    assert by_role[Role.READER] == {"open", "keys", "unwrap", "renew", "lock"}
    assert by_role[Role.EVICT] == {"who", "end", "caches", "forget"}
    assert by_role[Role.ADMIN] == set(OPERATIONS) - by_role[Role.EVICT]


def test_secrets_do_not_print() -> None:
    request = Open("alice", Secret(b"canary"), "")
    reply = Reply("opened", {"password1": "canary"})
    assert "canary" not in f"{request!r} {request} {reply!r} {reply}"


@pytest.mark.parametrize("value", ['"', "\\", "é", "a\nb", 2, True, None, ["x"]])
def test_a_reply_that_the_script_could_not_read_is_not_sent_to_dovecot(value: object) -> None:
    reply = Reply("opened", {"field": value})
    with pytest.raises(ValueError, match="not flat"):
        encode_reply(reply, Role.DOVECOT)
    assert parse_reply(encode_reply(reply, Role.ADMIN)[:-1])["field"] == value


def test_a_line_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    longest = b"x" * (LINE_LIMIT - 1)
    assert list(Lines().feed(longest + b"\n")) == [longest]
    for too_long in (longest + b"x\n", longest + b"x"):
        with pytest.raises(ProtocolError) as caught:
            list(Lines().feed(too_long))
        assert caught.value.fatal


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b""))), st.binary())
def test_lines_are_the_same_whole_and_byte_by_byte(lines: list[bytes], tail: bytes) -> None:
    tail = tail.replace(b"\n", b"")
    stream = b"".join(one + b"\n" for one in lines) + tail
    byte_by_byte = Lines()
    assert list(Lines().feed(stream)) == lines
    assert [out for b in stream for out in byte_by_byte.feed(bytes([b]))] == lines


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(
    sorted({name for kind, _ in OPERATIONS.values() for name in kind.__dataclass_fields__})
)
near_requests = st.builds(
    lambda op, values: json.dumps({**values, "op": op}).encode(),
    st.sampled_from(sorted(OPERATIONS)) | json_values,
    st.dictionaries(field_names, json_values | st.just("YWxpY2U="), max_size=7),
)


@given(st.binary() | near_requests, st.sampled_from(Role))
def test_any_line_is_a_request_or_a_protocol_error(raw: bytes, role: Role) -> None:
    try:
        request = parse_request(raw, role)
    except ProtocolError as error:
        assert protocol.FLAT_VALUE.fullmatch(error.public)
        encode_reply(protocol.error_reply(error), Role.DOVECOT)
    else:
        assert role in OPERATIONS[json.loads(raw)["op"]][1]
        assert parse_request(encode_request(request)[:-1], role) == request


@given(st.binary(max_size=30))
def test_names_keep_their_bytes(name: bytes) -> None:
    raw = line({"op": "lookup", "name": base64.b64encode(name).decode()})
    encoded = json.loads(encode_request(parse_request(raw, Role.DOVECOT)))
    assert base64.b64decode(encoded["name"]) == name


def test_a_reply_without_result_is_none() -> None:
    with pytest.raises(ProtocolError):
        parse_reply(b'{"token":"x"}')


def test_a_greeting_of_another_version_or_role_is_refused() -> None:
    protocol.check_greeting(protocol.greeting(Role.READER)[:-1], Role.READER)
    for greeting in (b'{"service":"x"}', protocol.greeting(Role.ADMIN)[:-1]):
        with pytest.raises(ProtocolError):
            protocol.check_greeting(greeting, Role.READER)


def test_a_request_without_fields_needs_none() -> None:
    assert parse_request(b'{"op":"status"}', Role.ADMIN) == Status()
