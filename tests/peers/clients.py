"""Foreign clients: swaks and Postfix's load generator, run in a `Host`."""

from dataclasses import dataclass

from tests.peers.root import Host


@dataclass(frozen=True, slots=True)
class Sent:
    """What swaks saw: its exit code (0 when the server took the mail) and the transcript."""

    exit_code: int
    transcript: str


def swaks(host: Host, *args: str, port: int, protocol: str = "LMTP", data: bytes = b"") -> Sent:
    """Send one message; `args` are options of swaks, as `--to a@example.org,b@example.org`."""
    options = ["--server", "127.0.0.1", "--port", str(port), "--protocol", protocol]
    body = ["--data", "-"] if data else []
    done = host.run("swaks", *options, *args, *body, stdin=data, check=False)
    return Sent(done.returncode, (done.stdout + done.stderr).decode(errors="replace"))


def smtp_source(host: Host, *args: str, port: int) -> str:
    """Run `smtp-source` (LMTP with `-L`); fails when the server refuses anything."""
    done = host.run("smtp-source", *args, f"127.0.0.1:{port}", timeout=120)
    return (done.stdout + done.stderr).decode(errors="replace")
