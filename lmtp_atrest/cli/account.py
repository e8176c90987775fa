"""Accounts: add, list, show, enable, rename, alias, remove. Each asks the unlock service."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lmtp_atrest.cli import keylife, ownkey
from lmtp_atrest.cli.asking import ask, confirm_address, page_option, print_changed
from lmtp_atrest.cli.terminal import (
    config_option,
    json_option,
    password_option,
    print_json,
    print_table,
    read_secret,
    when,
)
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.directory import DovecotDirectory, Found
from lmtp_atrest.doctor import refusals
from lmtp_atrest.doctor.facts import User, collect
from lmtp_atrest.dovecot import named_maildir
from lmtp_atrest.errors import NotFound, WrongState
from lmtp_atrest.names import Names
from lmtp_atrest.unlock.requests import (
    AccountAdd,
    AccountAlias,
    AccountEnable,
    AccountList,
    AccountRemove,
    AccountRename,
    AccountShow,
)

SHOWN = (
    "names",
    "state",
    "kind",
    "epoch",
    "created",
    "maildir",
    "key_ids",
    "closed_vaults",
    "admin_recovery",
    "frozen",
    "suspended",
    "account",
)


@click.group()
def account() -> None:
    """Add accounts, encrypt them, and look at them."""


@account.command()
@config_option
@click.argument("address")
@click.option("--home", default="", help="The home directory, if the directory is not to say.")
@click.option("--maildir", default="", help="The Maildir, if it is not where mail.path says.")
@json_option
def add(config: Config, address: str, home: str, maildir: str, as_json: bool) -> None:
    """Make a plain account. Its mail is delivered as it is until `account enable`."""
    if not home:
        home, named = _places_by_dovecot(config, address)
        maildir = maildir or named
    print_changed(ask(config, AccountAdd(address, home, maildir)), as_json)


def _places_by_dovecot(config: Config, address: str) -> tuple[str, str]:
    """Home and Maildir that Dovecot gives this user; empty where it is not the directory.

    Asked from here, as root: Dovecot answers others only about users of their own uid.
    """
    if config.directory.source != "dovecot":
        return "", ""
    name = Names(config.names, config.lmtp.recipient_delimiter).canonical(address)
    found = asyncio.run(_ask_dovecot(config, name))
    if found is None:
        message = f"Dovecot does not know {name}"
        raise NotFound(message)
    home = found.home or config.mail.home_of(name) or ""
    return home, named_maildir(name, home, found.fields) or ""


async def _ask_dovecot(config: Config, name: str) -> Found | None:
    async with DovecotDirectory(config.directory.socket) as directory:
        return await directory.lookup(name)


@account.command("list")
@config_option
@json_option
def list_(config: Config, as_json: bool) -> None:
    """List all accounts."""
    accounts = ask(config, AccountList())["accounts"]
    if as_json:
        print_json(accounts)
        return
    rows = [(a["names"][0], _state(a), a["epoch"], ", ".join(a["names"][1:])) for a in accounts]
    print_table(["NAME", "STATE", "EPOCH", "ALIASES"], rows)


def _state(shown: Mapping[str, Any]) -> str:
    """State and, where it is not the usual one, kind."""
    usual = shown["kind"] == Kind.MAIL_CRYPT
    return str(shown["state"]) if usual else f"{shown['state']} ({shown['kind']})"


@account.command()
@config_option
@click.argument("address")
@json_option
def show(config: Config, address: str, as_json: bool) -> None:
    """Show one account, and which slots open its vault."""
    found = dict(ask(config, AccountShow(address)).fields)
    if as_json:
        print_json(found)
        return
    for name in SHOWN:
        click.echo(f"{name.replace('_', ' ') + ':':<16}{_shown(name, found[name])}")
    ownkey.print_certificates(found["certificates"])
    click.echo()
    rows = [
        (s["kind"], s["label"] or "-", s["state"], when(s["created"]), s["used"] or "-")
        for s in found["slots"]
    ]
    print_table(["SLOT", "LABEL", "STATE", "SINCE", "LAST USED"], rows)


@account.command()
@config_option
@click.argument("address")
@click.option(
    "--accept",
    multiple=True,
    metavar="NAME",
    help="Go on although the site has this; the refusal says the name.",
)
@click.option("--mail-to", default="", metavar="ADDRESS", help="Mail the recovery code there.")
@page_option
@password_option
@json_option
def enable(
    config: Config,
    address: str,
    accept: tuple[str, ...],
    mail_to: str,
    page: Path | None,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Encrypt an account's mail from now on, to a key that its password opens.

    The password is the one the user logs in with. Returns after the barrier: from then on nothing
    is stored plain. The recovery code is shown once; without it, and without the password, there
    is no way back into the mail but admin recovery, where the site has it.
    """
    _check_site(config, address, accept)
    secret = read_secret(password_fd, f"The password of {address}", twice=True)
    print_changed(ask(config, AccountEnable(address, secret, mail_to)), as_json, page)


def _check_site(config: Config, address: str, accept: tuple[str, ...]) -> None:
    """WrongState where the site would lose, hide or store in clear what we encrypt."""
    shown = ask(config, AccountShow(address)).fields
    user = User(shown["names"][0], shown["home"], shown["maildir"])
    found = refusals(collect(config, [user]))
    lines = [f"{f.name}: {f.meaning}\n  {f.way_out}" for f in found if f.name not in accept]
    if lines:
        raise WrongState("\n".join(lines))


@account.command()
@config_option
@click.argument("address")
@click.argument("new")
@json_option
def rename(config: Config, address: str, new: str, as_json: bool) -> None:
    """Give an account another login name. Keys, mail and Maildir stay where they are."""
    print_changed(ask(config, AccountRename(address, new)), as_json)


@account.command()
@config_option
@click.argument("address")
@click.argument("name")
@click.option("--remove", is_flag=True, help="Take the name away instead.")
@json_option
def alias(config: Config, address: str, name: str, remove: bool, as_json: bool) -> None:
    """Add a name to an account."""
    print_changed(ask(config, AccountAlias(address, name, remove)), as_json)


@account.command()
@config_option
@click.argument("address")
@click.option("--yes", metavar="ADDRESS", help="The address once more, instead of typing it.")
@json_option
def remove(config: Config, address: str, yes: str | None, as_json: bool) -> None:
    """Remove an account; its vault is kept, closed, for 30 days.

    The Maildir is not touched. Mail in it that is encrypted can no longer be read, by anybody.
    """
    confirm_address(address, yes, f"This closes the mail of {address}.")
    print_changed(ask(config, AccountRemove(address)), as_json)


def _shown(name: str, value: Any) -> str:
    if name == "created":
        return when(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


for command in (*keylife.COMMANDS, ownkey.key):
    account.add_command(command)
