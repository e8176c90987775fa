import pytest

from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.dovecot import CURVE, MBOX, REPLICATOR, SHARED, Refusal, read_doveconf, refusals
from lmtp_atrest.errors import TemporaryFailure

CLEAN_23 = """# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf
mail_location = maildir:~/Maildir
mail_plugins = mail_crypt
namespace inbox {
  inbox = yes
  mailbox Junk {
    special_use = \\Junk
  }
  type = private
}
passdb {
  driver = pam
}
"""
CLEAN_24 = "# 2.4.1-4 (7d8c0e5759): /etc/dovecot/dovecot.conf\nmail_driver = maildir\n"
DEBIAN_23 = "# 2.3.19.1 (x)\nmail_location = mbox:~/mail:INBOX=/var/mail/%u\n"
SHARED_23 = CLEAN_23 + "namespace {\n  prefix = shared/%%u/\n  type = shared\n}\n"
PUBLIC_24 = CLEAN_24 + "namespace team {\n  type = public\n}\n"


@pytest.mark.parametrize(
    ("doveconf", "curve", "expected"),
    [
        (CLEAN_23, Curve.PRIME256V1, []),
        (CLEAN_24, Curve.X25519, []),
        (CLEAN_23, Curve.X25519, [CURVE]),
        (DEBIAN_23, Curve.PRIME256V1, [MBOX]),
        ("# 2.4.1 (x)\nmail_driver = mbox\nmail_path = ~/mail\n", Curve.PRIME256V1, [MBOX]),
        (SHARED_23, Curve.PRIME256V1, [SHARED]),
        (PUBLIC_24, Curve.PRIME256V1, [SHARED]),
        (
            CLEAN_23.replace("mail_crypt", "mail_crypt notify replication"),
            Curve.PRIME256V1,
            [REPLICATOR],
        ),
        (
            DEBIAN_23 + "namespace a {\n location = mbox:/x\n type = public\n}\n",
            Curve.X25519,
            [MBOX, SHARED, CURVE],
        ),
    ],
)
def test_what_dovecot_could_not_read_is_named(
    doveconf: str, curve: Curve, expected: list[Refusal]
) -> None:
    assert refusals(doveconf, curve) == expected


def test_a_doveconf_that_fails_is_said_with_the_way_out() -> None:
    assert read_doveconf("echo '# 2.3'") == "# 2.3\n"
    for command in ("/nonexistent/doveconf -n", "false", "'unclosed"):
        with pytest.raises(TemporaryFailure, match=r"directory\.doveconf"):
            read_doveconf(command)
