import subprocess
import sys

import pytest

from lmtp_atrest.maildir import names


@pytest.mark.parametrize(
    ("host", "escaped"),
    [
        ("mx1.example.org", "mx1.example.org"),
        ("a/b:c,d", r"a\057b\072c\054d"),
        ("..\n", r"..\012"),
        ("ü", r"\303\274"),
    ],
)
def test_host_is_escaped(host: str, escaped: str) -> None:
    assert names.escaped_host(host) == escaped
    name = names.unique_name(host)
    assert name.endswith(f".{escaped}")
    assert names.is_own_name(name, host)
    assert not names.is_own_name(name, "other")


def test_longest_name_fits_into_a_directory_entry() -> None:
    for host in ("/" * 300, "h" * 300):
        assert len(names.with_sizes(names.unique_name(host), 2**36, 2**37)) < 200


def test_names_of_other_programs_are_not_ours() -> None:
    for name in ("1795427558.M654078P23343.vm", "dovecot.tmp", "", names.unique_name() + ",S=1"):
        assert not names.is_own_name(name)
    assert names.is_own_name(names.unique_name())


def test_flags_and_base() -> None:
    assert names.flags_of("1.M2P3.h,S=4,W=5:2,RS") == "RS"
    assert names.flags_of("1.M2P3.h,S=4,W=5") == ""
    assert names.base_of("1.M2P3.h,S=4,W=5:2,RS") == "1.M2P3.h,S=4,W=5"


def test_sixteen_processes_never_make_the_same_name() -> None:
    program = (
        "from lmtp_atrest.maildir.names import unique_name\n"
        "for _ in range(300): print(unique_name())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(16)
    ]
    made = [name for process in running for name in process.communicate()[0].split()]
    assert len(made) == len(set(made)) == 16 * 300
