"""A site that has deployed what is below `deploy/`: its people, and its Dovecot's settings."""

from pathlib import Path

from tests.peers.root import Host

DEPLOY = Path(__file__).parents[2] / "deploy"
ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
PASSWORD = "correct horse; battery\"staple' \\ {}%u ünïcödé"
USERS = {ALICE: PASSWORD, BOB: "bob's own", CAROL: "changed at the site"}
MESSAGE = b"From: eve@example.net\r\nSubject: canary-subject\r\n\r\ncanary-body\r\n"

# More of what a site may have: mechanisms without a password, master users, tokens.
EXTRA = """
auth_mechanisms = plain login cram-md5 xoauth2
auth_master_user_separator = *
auth_debug = yes
mail_debug = yes
"""
MASTER = """
passdb {
  driver = passwd-file
  args = /etc/dovecot/masters
  master = yes
  result_success = continue
}
"""
TOKENS = """
passdb {
  driver = static
  mechanisms = xoauth2
  args = nopassword=y
  result_success = continue-ok
  result_failure = return-fail
}
"""


def deploy(host: Host, extra: str = EXTRA + MASTER + TOKENS) -> str:
    """Install script and snippet as the snippet says; the settings before it are the site's."""
    host.write("/etc/dovecot/lmtp-atrest.lua", (DEPLOY / "dovecot/lmtp-atrest.lua").read_text())
    host.write("/etc/dovecot/masters", "boss:{PLAIN}master secret\n")
    snippet = (DEPLOY / "dovecot/dovecot-2.3.conf").read_text()
    return extra + snippet.replace("user = vmail", "user = mail")
