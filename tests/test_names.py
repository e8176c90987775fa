import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_atrest.config import NamesSection
from lmtp_atrest.errors import ConfigError
from lmtp_atrest.names import Address, InvalidName, Names, NeedsUtf8, canonical_domain, parse_path

NAMES = Names(NamesSection(), "+")

GOOD = [
    (b"<alice@example.org>", "alice", "example.org"),
    (b"  <alice@example.org>", "alice", "example.org"),
    (b"<postmaster>", "postmaster", ""),
    (b"<Postmaster@Example.ORG>", "Postmaster", "Example.ORG"),
    (b"<a+b@example.org>", "a+b", "example.org"),
    (b"<!#$%&'*+-/=?^_`{|}~@example.org>", "!#$%&'*+-/=?^_`{|}~", "example.org"),
    (b"<../../etc/passwd@x>", "../../etc/passwd", "x"),
    (b'<"a b/../c"@x>', "a b/../c", "x"),
    (b'<"a\\"b"@x>', 'a"b', "x"),
    (b'<"a\\\\b"@x>', "a\\b", "x"),
    (b'<"a>b"@x>', "a>b", "x"),
    (b'<"a@b"@x>', "a@b", "x"),
    (b'<"alice"@x>', "alice", "x"),
    (b"<a..b@docomo.example>", "a..b", "docomo.example"),
    (b"<.a.@x>", ".a.", "x"),
    (b"<a@my_host.example>", "a", "my_host.example"),
    (b"<a@[192.0.2.1]>", "a", "[192.0.2.1]"),
    (b"<a@[IPv6:2001:db8::1]>", "a", "[IPv6:2001:db8::1]"),
    (b"<" + b"v" * 255 + b"@x>", "v" * 255, "x"),
    (b"<a@xn--bcher-kva.example>", "a", "xn--bcher-kva.example"),
    ("<ü@bücher.example>".encode(), "ü", "bücher.example"),
    (b"<a@" + b".".join([b"d" * 60] * 4) + b">", "a", ".".join(["d" * 60] * 4)),
]


@pytest.mark.parametrize(
    ("raw", "local", "domain"), GOOD, ids=[f"{i}-{ascii(g[0])[:40]}" for i, g in enumerate(GOOD)]
)
def test_an_odd_but_legal_path_is_read(raw: bytes, local: str, domain: str) -> None:
    assert parse_path(raw, utf8=True) == (Address(local, domain), b"")


BAD = [
    b"",
    b" ",
    b"<",
    b">",
    b"<<>>",
    b"< >",
    b"<a",
    b"a@x",
    b"alice",
    b"<a b@x>",
    b"<a @x>",
    b"< a@x>",
    b"<@x>",
    b'<""@x>',
    b"<a@>",
    b"<a@b@c>",
    b"<a@x>junk",
    b"<a@x><b@x>",
    b"<@relay:a@x>",
    b"<@a,@b:c@d>",
    b'<"a"b@x>',
    b'<a"b"@x>',
    b'<"a@x>',
    b'<"a\\"@x>',
    b"<a(comment)@x>",
    b"<a,b@x>",
    b"<a;b@x>",
    b"<a:b@x>",
    b"<a[b@x>",
    b"<a\\b@x>",
    b"<a\0b@x>",
    b'<"a\0b"@x>',
    b"<a\rb@x>",
    b'<"a\rX: y"@x>',
    b'<"a\nX: y"@x>',
    b'<"a\\\nX: y"@x>',
    b'<"a\tb"@x>',
    b'<"a\x7fb"@x>',
    b"<a\x1bb@x>",
    b"<a@x\0>",
    b"<a@x\r>",
    b"<a@x y>",
    b"<a@-x.example>",
    b"<a@x-.example>",
    b"<a@.example>",
    b"<a@example.>",
    b"<a@ex..ample>",
    b"<a@ex/../ample>",
    b"<a@ex%00ample>",
    b"<a@[192.0.2.256]>",
    b"<a@[192.0.2.1>",
    b"<a@[IPv6:zz]>",
    b"<a@[fe80::1%eth0]>",
    b"<a@[IPv6:fe80::1%eth0]>",
    b"<a@[tag:content]>",
    b"<a@" + b"d" * 64 + b".example>",
    b"<a@" + b".".join([b"d" * 60] * 5) + b">",
    b"<" + b"v" * 256 + b"@x>",
    b'<"a@b">',
    b"<a\xff@x>",
    b"<a\xc0\xaf@x>",
    "<a\u2028b@x>".encode(),
    "<a\u0085b@x>".encode(),
    "<a\u202eb@x>".encode(),
    "<a\u200bb@x>".encode(),
    "<a\u0378b@x>".encode(),
    "<a\ue000b@x>".encode(),
    b"<a\xed\xa0\x80@x>",
    "<a@x\u2028y>".encode(),
    "<a@\u2024example>".encode(),
]


@pytest.mark.parametrize("raw", BAD, ids=[f"{i}-{ascii(b)[:40]}" for i, b in enumerate(BAD)])
def test_what_is_no_path_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidName):
        parse_path(raw, utf8=True)


def test_the_null_sender_is_none_and_parameters_are_handed_back() -> None:
    assert parse_path(b"<> SIZE=10 BODY=8BITMIME ", utf8=False) == (None, b"SIZE=10 BODY=8BITMIME")
    assert parse_path(b"<a@x> SIZE=10", utf8=False) == (Address("a", "x"), b"SIZE=10")
    with pytest.raises(InvalidName):
        parse_path(b"<>SIZE=10", utf8=False)


def test_eight_bit_needs_smtputf8() -> None:
    with pytest.raises(NeedsUtf8):
        parse_path("<ü@x>".encode(), utf8=False)


def test_a_written_address_is_quoted_where_it_must_be() -> None:
    assert str(Address("alice", "x")) == "alice@x"
    assert str(Address("a b", "x")) == '"a b"@x'
    assert str(Address('a"\\', "x")) == '"a\\"\\\\"@x'
    assert str(Address("a..b", "x")) == '"a..b"@x'
    assert str(Address("postmaster")) == "postmaster"
    assert str(Address("ü", "x")) == "ü@x"


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_path_or_an_invalid_name(raw: bytes, utf8: bool) -> None:
    try:
        address, _ = parse_path(raw, utf8=utf8)
    except InvalidName:
        return
    if address is not None:
        written = str(address)
        assert not any(ord(c) < 32 or ord(c) == 127 for c in written)
        assert len(written.splitlines()) == 1


@given(
    st.text(max_size=20), st.sampled_from(["x", "Example.ORG", "bücher.example", "[192.0.2.1]"])
)
def test_an_accepted_address_reads_back_the_same(local: str, domain: str) -> None:
    address = Address(local, domain)
    try:
        read, _ = parse_path(f"<{address}>".encode(errors="surrogatepass"), utf8=True)
    except InvalidName:
        return
    assert read == address


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Alice@Example.ORG", "alice@example.org"),
        ("alice", "alice"),
        ("ALICE@bücher.example", "alice@xn--bcher-kva.example"),
        ("alice@BÜCHER.example", "alice@xn--bcher-kva.example"),
        ("alice@XN--BCHER-KVA.example", "alice@xn--bcher-kva.example"),
        ("u\u0308ber@x", "über@x"),
        ("ÜBER@x", "über@x"),
        ("straße@x", "straße@x"),
        ("a@straße.example", "a@xn--strae-oqa.example"),
        ("A@B@x", "a@b@x"),
        ("a@[IPv6:2001:DB8:0::1]", "a@[ipv6:2001:db8::1]"),
        ("../../etc@x", "../../etc@x"),
    ],
)
def test_spellings_of_one_name_have_one_canonical_form(name: str, expected: str) -> None:
    assert NAMES.canonical(name) == expected


@pytest.mark.parametrize("name", ["", "@x", "a@", "a\n@x", "a@x\0", "a\u200b@x", "a@x y", "a@@x@"])
def test_what_is_no_name_has_no_canonical_form(name: str) -> None:
    with pytest.raises(InvalidName):
        NAMES.canonical(name)


@given(st.text(max_size=12), st.sampled_from(["", "@x", "@Bücher.example", "@[192.0.2.1]"]))
def test_canonical_is_idempotent(local: str, domain: str) -> None:
    try:
        once = NAMES.canonical(local + domain)
    except InvalidName:
        return
    assert NAMES.canonical(once) == once


def test_case_is_kept_where_the_site_says_exact() -> None:
    assert Names(NamesSection(case="exact"), "").canonical("Alice@X") == "Alice@x"


def test_default_and_alias_domains_apply() -> None:
    section = NamesSection(
        default_domain="Example.org",
        alias_domains={"old.example": "mid.example", "mid.example": "example.org"},
    )
    names = Names(section, "+")
    assert names.canonical("alice") == "alice@example.org"
    assert names.canonical("alice@OLD.example") == "alice@example.org"
    assert names.canonical("alice@mid.example") == "alice@example.org"


def test_alias_domains_that_lead_in_a_circle_are_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="leads back"):
        Names(NamesSection(alias_domains={"a.example": "b.example", "b.example": "a.example"}), "")
    with pytest.raises(ConfigError, match="alias_domains"):
        Names(NamesSection(alias_domains={"a..example": "b.example"}), "")


@pytest.mark.parametrize(
    ("local", "base", "detail"),
    [
        ("alice+Work", "alice@x", "Work"),
        ("ALICE+a+b", "alice@x", "a+b"),
        ("alice+", "alice@x", None),
        ("+x", "+x@x", None),
        ("alice", "alice@x", None),
    ],
)
def test_detail_is_split_off_and_keeps_its_case(local: str, base: str, detail: str | None) -> None:
    assert NAMES.split_detail(Address(local, "x")) == (base, detail)


def test_without_a_delimiter_there_is_no_detail() -> None:
    assert Names(NamesSection(), "").split_detail(Address("a+b", "x")) == ("a+b@x", None)


def test_an_over_long_international_domain_is_refused() -> None:
    with pytest.raises(InvalidName):
        canonical_domain("ü" * 300)
