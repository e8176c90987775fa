"""A Debian mail server as it was before lmtp-atrest, for somebody who follows docs/operations.md.

Every file is where Debian has it and every server on its own port: the network is the machine's.
Postfix or Exim hands mail to Dovecot's LMTP; the users stand in a passwd-file.
"""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.dovecot import Imap
from tests.peers.postfix import Postfix
from tests.peers.root import Host, wait_for_port

REPOSITORY = Path(__file__).parents[2]
STANDINS = Path(__file__).parent / "standins"
ALICE, BOB, CAROL = USERS = "alice@example.org", "bob@example.org", "carol@example.org"
MAIL = "/var/vmail"
IMAP, LMTP, SMTP = 143, 24, 25

# carol's mailbox is full with her first message; the others have what the shipped snippet says.
CAROLS_LIMIT = {
    "2.3": "userdb_quota_rule=*:storage=1k",
    "2.4": "userdb_quota_storage_size=1k",
}
DOVECOT = """
listen = 127.0.0.1
ssl = no
log_path = /var/log/dovecot.log
service lmtp {
  inet_listener lmtp {
    port = 24
  }
}
"""
DOVECOT_23 = """
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
"""
DOVECOT_24 = """
auth_allow_cleartext = yes
"""
PASSWD_FILE_24 = """
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
userdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
"""

EXIM = """
dc_eximconfig_configtype='internet'
dc_other_hostnames='example.org'
dc_local_interfaces='127.0.0.1'
dc_readhost=''
dc_relay_domains=''
dc_minimaldns='true'
dc_relay_nets=''
dc_smarthost=''
CFILEMODE='644'
dc_use_split_config='false'
dc_hide_mailname=''
dc_mailname_in_oh='true'
dc_localdelivery='mail_spool'
"""
EXIM_ROUTER = """
before:
  driver = accept
  domains = +local_domains
  transport = before
"""
EXIM_TRANSPORT = """
before:
  driver = smtp
  protocol = lmtp
  hosts = 127.0.0.1
  port = 24
  allow_localhost
  max_rcpt = 1
"""


@contextmanager
def machine(suite: str, shared: Path) -> Iterator[Host]:
    """A fresh root with Dovecot and the site's users; this thread is in its network."""
    libraries, start = python()
    mounts = {
        "/host/repository": REPOSITORY,
        "/host/python": Path(sys.base_prefix),
        "/host/packages": Path(sysconfig.get_path("platlib")),
        "/host/libraries": libraries,
    }
    with Host(suite, shared, mounts=mounts, own_network=True) as host, host.network():
        host.write("/host/lmtp-atrest", start, 0o755)
        for standin in STANDINS.iterdir():
            host.write(f"/usr/local/sbin/{standin.name}", standin.read_text(), 0o755)
        host.run("useradd", "--uid=5000", "--create-home", f"--home-dir={MAIL}", "vmail")
        start_dovecot(host)
        yield host


def python() -> tuple[Path, str]:
    """Where this Python's libraries are, and a script that runs the product by it in a root.

    The loader is named, because the C library of the root may be older than this one.
    """
    linked = subprocess.run(["ldd", sys.executable], capture_output=True, text=True, check=True)
    (found,) = re.findall(r"^\s*(/\S*/ld-\S+)", linked.stdout, re.M)
    loader = Path(found).resolve()
    program = Path(sys.executable).resolve().relative_to(sys.base_prefix)
    return loader.parent, (
        "#!/bin/sh\n"
        "export PYTHONHOME=/host/python PYTHONPATH=/host/repository:/host/packages\n"
        "export PYTHONDONTWRITEBYTECODE=1\n"
        f"exec /host/libraries/{loader.name} --library-path /host/python/lib:/host/libraries"
        f' /host/python/{program} -m lmtp_atrest "$@"\n'
    )


def version(host: Host) -> str:
    """The host's Dovecot."""
    return "2.3" if host.suite == "bookworm" else "2.4"


def password(name: str) -> str:
    """What a user logs in with."""
    return f"{name} knows it"


def start_dovecot(host: Host) -> None:
    """Users in a passwd-file, by Debian's own way for these; mail in Maildirs of vmail."""
    rows = [
        f"{name}:{{PLAIN}}{password(name)}:5000:5000::{MAIL}/{name}::"
        + (CAROLS_LIMIT[version(host)] if name == CAROL else "")
        for name in USERS
    ]
    host.write("/etc/dovecot/users", "\n".join([*rows, ""]))
    if version(host) == "2.4":
        host.write("/etc/dovecot/conf.d/auth-passwdfile.conf.ext", PASSWD_FILE_24)
    host.run("sed", "-i", "s/auth-system/auth-passwdfile/", "/etc/dovecot/conf.d/10-auth.conf")
    more = {"2.3": DOVECOT_23, "2.4": DOVECOT_24}[version(host)]
    host.write("/etc/dovecot/local.conf", DOVECOT + more)
    host.run("dovecot")
    wait_for_port(IMAP, host.path("/var/log/dovecot.log"))


def postfix(host: Host) -> Postfix:
    """Postfix with virtual mailboxes, which Dovecot's LMTP delivers."""
    transport = f"lmtp:inet:127.0.0.1:{LMTP}"
    domains = {"virtual_mailbox_domains": "example.org", "recipient_delimiter": "+"}
    logging = {"maillog_file_prefixes": "/var/log", "maillog_file": "/var/log/postfix.log"}
    main = {**domains, **logging, "virtual_transport": transport}
    prepared = Postfix(host, host.shared[0], main)
    prepared.port, prepared.log_path = SMTP, host.path("/var/log/postfix.log")
    return prepared


def start_exim(host: Host) -> None:
    """Exim as Debian's packages leave it, split or not, with a router to Dovecot's LMTP."""
    host.run("dpkg", "--remove", "--force-depends", "postfix")  # as apt would, for Exim
    unpack = "tar -C /opt/exim -cf - . | tar -C / --keep-directory-symlink -xf -"
    host.run("sh", "-c", unpack)
    own = ("-o", "Debian-exim", "-g", "adm")
    host.run("install", "-d", *own, "/var/spool/exim4", "/var/log/exim4", "/run/exim4")
    host.run("install", "-d", "/var/lib/exim4")
    host.write("/etc/mailname", "mx.example.org\n")
    host.write("/etc/exim4/update-exim4.conf.conf", EXIM)
    for place, text in (("router/890_site", EXIM_ROUTER), ("transport/31_site", EXIM_TRANSPORT)):
        host.write(f"/etc/exim4/conf.d/{place}", text)
    template = host.path("/etc/exim4/exim4.conf.template")
    text = template.read_text()
    for mark, own_part in (
        ("### router/900_", EXIM_ROUTER),
        ("### transport/30_", EXIM_TRANSPORT),
    ):
        assert mark in text
        before, found, after = text.partition(mark)
        text = f"{before}{own_part}\n{found}{after}"
    template.write_text(text)
    host.run("update-exim4.conf")
    host.run("exim4", "-bd")
    wait_for_port(SMTP, host.path("/var/log/exim4/mainlog"))


def imap(name: str) -> Imap:
    """Log in and select INBOX."""
    client = Imap(IMAP)
    client.login(name, password(name))
    client.select()
    return client
