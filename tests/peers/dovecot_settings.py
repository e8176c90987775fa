"""What a test changes in Debian's stock configuration of Dovecot 2.3 and 2.4.

Read last by Debian's dovecot.conf. Clear text and 127.0.0.1 only: tests log in as clients do
behind a TLS proxy. The socket in the shared directory is what lmtp-atrest asks who exists.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """`local` takes ports and paths; `site_users` is for tests without a stacking of their own;
    the others are more of what a site may have beside it."""

    local: str
    site_users: str
    debugging: str
    masters: str
    tokens: str


PORTS = """
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service auth {{
  unix_listener {sockets}/auth-userdb {{
    mode = 0660
    user = mail
    group = daemon
  }}
  inet_listener sasl {{
    port = {auth}
  }}
}}
# No waiting after wrong passwords: all clients have one address.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""
COMMON = """
protocols = imap pop3 lmtp
listen = 127.0.0.1
ssl = no
auth_failure_delay = 0
login_trusted_networks =
log_path = {log}
mail_uid = mail
mail_gid = mail
first_valid_uid = 8
mail_max_userip_connections = 100
"""

DOVECOT_23 = Settings(
    local=COMMON
    + """
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
mail_home = {mail}/%u
"""
    + PORTS,
    site_users="""
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=%u /etc/dovecot/users
}
userdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/users
}
""",
    debugging="""
auth_mechanisms = plain login cram-md5 xoauth2
auth_master_user_separator = *
auth_debug = yes
mail_debug = yes
""",
    masters="""
passdb {
  driver = passwd-file
  args = /etc/dovecot/masters
  master = yes
  result_success = continue
}
""",
    tokens="""
passdb {
  driver = static
  mechanisms = xoauth2
  args = nopassword=y
  result_success = continue-ok
  result_failure = return-fail
}
""",
)

DOVECOT_24 = Settings(
    local=COMMON
    + """
auth_allow_cleartext = yes
mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path = ~/Maildir
mail_home = {mail}/%{{user}}
# Debian cuts the domain off; the users of these tests are whole addresses.
protocol lmtp {{
  auth_username_format = %{{user | lower}}
}}
"""
    + PORTS,
    site_users="""
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
userdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
""",
    debugging="""
auth_mechanisms = plain login cram-md5 xoauth2
auth_master_user_separator = *
log_debug = category=auth OR category=mail
""",
    masters="""
passdb masters {
  driver = passwd-file
  passwd_file_path = /etc/dovecot/masters
  master = yes
  result_success = continue
}
""",
    tokens="""
oauth2 {
  introspection_mode = local
  username_attribute = sub
  oauth2_local_validation {
    dict fs {
      fs posix {
        prefix = /etc/dovecot/oauth2-keys/
      }
    }
  }
}
""",
)

SETTINGS = {"2.3": DOVECOT_23, "2.4": DOVECOT_24}
