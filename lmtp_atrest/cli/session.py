"""Open vaults: who has one, and ending it."""

import click

from lmtp_atrest.cli.asking import ask
from lmtp_atrest.cli.terminal import config_option, json_option, note, print_json, print_table
from lmtp_atrest.config import Config
from lmtp_atrest.unlock.requests import SessionList, SessionLock


@click.group()
def session() -> None:
    """See which vaults are open, and lock them."""


@session.command("list")
@config_option
@json_option
def list_(config: Config, as_json: bool) -> None:
    """List the open vaults."""
    sessions = ask(config, SessionList())["sessions"]
    if as_json:
        print_json(sessions)
        return
    rows = [
        (s["name"], s["source"] or "-", f"{s['open_seconds']} s", f"{s['idle_seconds']} s")
        for s in sessions
    ]
    print_table(["NAME", "FROM", "OPEN FOR", "IDLE FOR"], rows)


@session.command()
@config_option
@click.argument("address")
@json_option
def lock(config: Config, address: str, as_json: bool) -> None:
    """Close an account's open vault at once, and end its IMAP sessions."""
    reply = ask(config, SessionLock(address))
    if as_json:
        print_json(dict(reply.fields))
        return
    click.echo(f"{address}: {reply['vaults']} vaults closed")
    if reply["readers_remaining"] != 0:
        note(f"IMAP sessions that may still hold keys: {reply['readers_remaining']}")
