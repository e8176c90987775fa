"""Postfix: whether it hands us mail at all, and can reach us from its chroot.

Looks at what `postconf` prints. A site with another MTA has no `postconf`: then nothing is said.
"""

import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmtp_atrest.config import Config, Listener
from lmtp_atrest.doctor.findings import Finding, problem, warning

ANSWER_SECONDS = 20
TRANSPORTS = ("virtual_transport", "mailbox_transport", "local_transport", "relay_transport")
SETTINGS = (
    *TRANSPORTS,
    "transport_maps",
    "queue_directory",
    "mydestination",
    "virtual_alias_domains",
    "virtual_mailbox_domains",
    "message_size_limit",
    "lmtp_destination_recipient_limit",
)


@dataclass(frozen=True, slots=True)
class Postfix:
    """What `postconf -x` says of `SETTINGS`, and whether the LMTP client runs in a chroot."""

    settings: Mapping[str, str]
    chroot: bool

    @classmethod
    def parse(cls, main: str, master: str) -> "Postfix":
        """Read `postconf -x …` and `postconf -M lmtp/unix`."""
        pairs = (line.partition(" =")[::2] for line in main.splitlines())
        settings = {name: value.strip() for name, value in pairs}
        columns = master.split()
        return cls(settings, len(columns) > 4 and columns[4] == "y")

    def domains(self, name: str) -> set[str]:
        """A list of domains, without look-up tables and patterns."""
        words = self.settings.get(name, "").replace(",", " ").split()
        return {word for word in words if ":" not in word and not word.startswith(("/", "!"))}


def read(command: str) -> Postfix | None:
    """Ask Postfix; None where there is none."""
    try:
        return Postfix.parse(_run(command, "-x", *SETTINGS), _run(command, "-M", "lmtp/unix"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _run(command: str, *arguments: str) -> str:
    result = subprocess.run(  # noqa: S603 - the operator's own command, without a shell
        [*shlex.split(command), *arguments],
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=True,
    )
    return result.stdout


def check(config: Config, postfix: Postfix | None) -> Iterator[Finding]:
    """All that is said of Postfix, by who delivers."""
    if postfix is None:
        return
    if config.mail.delivered_by == "dovecot":
        yield from _one_at_a_time(postfix)
        return
    listeners = [Listener.parse(text) for text in config.lmtp.listen]
    yield from _chroot(postfix, listeners)
    yield from _transport(postfix, listeners)
    yield from _domains(postfix, listeners)
    limit = int(postfix.settings.get("message_size_limit") or 0)
    if limit == 0 or limit > config.lmtp.max_message_size:
        yield warning(
            "message-size",
            f"Postfix takes messages of {limit or 'any number of'} bytes, lmtp-atrest "
            f"{config.lmtp.max_message_size}: larger ones bounce",
            "make lmtp.max_message_size as large as message_size_limit",
        )


def _one_at_a_time(postfix: Postfix) -> Iterator[Finding]:
    limit = postfix.settings.get("lmtp_destination_recipient_limit", "1")
    to_dovecot = [
        t for name in TRANSPORTS if (t := postfix.settings.get(name, "")).startswith("lmtp:")
    ]
    if to_dovecot and limit != "1":
        yield warning(
            "postfix-recipients",
            f"Postfix hands {limit} recipients of a message to Dovecot's LMTP at once: behind an "
            "encrypted one all others are put off, and come one with each retry",
            "postconf -e lmtp_destination_recipient_limit=1 && postfix reload",
        )


def _chroot(postfix: Postfix, listeners: list[Listener]) -> Iterator[Finding]:
    queue = postfix.settings.get("queue_directory", "/var/spool/postfix").rstrip("/")
    for listener in listeners:
        if postfix.chroot and listener.path and not listener.path.startswith(f"{queue}/"):
            yield problem(
                "postfix-chroot",
                f"Postfix's lmtp client runs in a chroot ({queue}), where {listener.path} does "
                "not exist: mail handed to that socket waits in the queue",
                f"listen on 127.0.0.1:8024, or on unix:{queue}/atrest/lmtp, which Postfix calls "
                "lmtp:unix:atrest/lmtp",
            )


def _transport(postfix: Postfix, listeners: list[Listener]) -> Iterator[Finding]:
    named = [postfix.settings.get(name, "") for name in TRANSPORTS]
    if postfix.settings.get("transport_maps") or any(
        _is_ours(postfix, t, listeners) for t in named
    ):
        return
    yield warning(
        "postfix-transport",
        f"no transport of Postfix names lmtp-atrest ({', '.join(TRANSPORTS)}), and there are no "
        "transport_maps: it hands us no mail",
        "see deploy/postfix/pilot.cf and all.cf",
    )


def _is_ours(postfix: Postfix, transport: str, listeners: list[Listener]) -> bool:
    """Whether `lmtp:inet:HOST:PORT` or `lmtp:unix:PATH` is one of our addresses."""
    destination = transport.partition(":")[2].replace("localhost", "127.0.0.1")
    queue = postfix.settings.get("queue_directory", "").rstrip("/")
    for listener in listeners:
        ours = {f"inet:{listener.host}:{listener.port}", f"inet:[{listener.host}]:{listener.port}"}
        if listener.path:
            ours = {f"unix:{listener.path}", f"unix:{listener.path.removeprefix(f'{queue}/')}"}
        if destination in ours:
            return True
    return False


def _domains(postfix: Postfix, listeners: list[Listener]) -> Iterator[Finding]:
    virtual = postfix.domains("virtual_mailbox_domains")
    if not _is_ours(postfix, postfix.settings.get("virtual_transport", ""), listeners):
        return
    if not postfix.settings.get("virtual_mailbox_domains"):
        yield warning(
            "postfix-domains",
            "virtual_transport names lmtp-atrest, but there are no virtual_mailbox_domains: no "
            "domain takes that way",
            "set virtual_mailbox_domains to the domains of your users",
        )
    for other in ("mydestination", "virtual_alias_domains"):
        if both := sorted(virtual & postfix.domains(other)):
            yield problem(
                "postfix-domains",
                f"{', '.join(both)}: in {other} and in virtual_mailbox_domains; Postfix then "
                "takes it for local (or an alias), and virtual_transport does not count",
                f"take it out of {other}",
            )
