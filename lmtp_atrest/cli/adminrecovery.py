"""The admin recovery password: setting it, changing it, using it, and what was done with it."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import click

from lmtp_atrest.cli.asking import ask, fd_option, print_changed
from lmtp_atrest.cli.conversion import decrypt_account
from lmtp_atrest.cli.terminal import (
    config_option,
    json_option,
    note,
    password_option,
    print_json,
    print_table,
    read_secret,
    when,
)
from lmtp_atrest.config import Config
from lmtp_atrest.errors import UsageError
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import (
    AccountShow,
    AdminChange,
    AdminExport,
    AdminLeave,
    AdminResetPassword,
    AdminSet,
    AdminStatus,
    AuditList,
)

PROMPT = "The admin recovery password"
MEANING = """\
Whoever has this password, and this machine's stores, can read the mail of every account that has
a slot for it: accounts encrypted from now on, where users do not refuse. It is nowhere written
down here; lost, it opens nothing. Keep it on paper, in two places, and off this machine."""


@click.group("admin-recovery")
def admin_recovery() -> None:
    """The password with which an administrator can open accounts, where a site wants one."""


@admin_recovery.command("set")
@config_option
@password_option
@json_option
def set_(config: Config, password_fd: int | None, as_json: bool) -> None:
    """Set the first admin recovery password."""
    for line in MEANING.splitlines():
        note(line)
    _print_status(ask(config, AdminSet(read_secret(password_fd, PROMPT, twice=True))), as_json)


@admin_recovery.command()
@config_option
@json_option
def status(config: Config, as_json: bool) -> None:
    """Show the policy, and how many accounts admin recovery opens."""
    _print_status(ask(config, AdminStatus()), as_json)


@admin_recovery.command()
@config_option
@click.option(
    "--new-key/--new-password",
    "new_key",
    required=True,
    help="A new key for all accounts (somebody may know the old password), or another password.",
)
@password_option
@fd_option("new-password", "the new admin recovery password")
@json_option
def change(
    config: Config,
    new_key: bool,
    password_fd: int | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Change the admin recovery password.

    A run with --new-key that was cut short goes on when it is called again in the same way.
    """
    old = read_secret(password_fd, PROMPT + " of now")
    new = read_secret(new_password_fd, "The new one", twice=True)
    _print_status(ask(config, AdminChange(old, new, new_key)), as_json)


@admin_recovery.command("reset-password")
@config_option
@click.argument("address")
@password_option
@fd_option("new-password", "the user's new password")
@json_option
def reset_password(
    config: Config,
    address: str,
    password_fd: int | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Give a user a new password for the encrypted mail. Recorded, and told to the user.

    Set the same password at the site.
    """
    secret = read_secret(password_fd, PROMPT)
    new = read_secret(new_password_fd, f"The new password of {address}", twice=True)
    print_changed(ask(config, AdminResetPassword(address, secret, new)), as_json)


@admin_recovery.command()
@config_option
@click.argument("address")
@click.option("--export-key", type=click.Path(path_type=Path), metavar="FILE")
@password_option
@fd_option("passphrase", "the passphrase for the key file")
@json_option
def decrypt(
    config: Config,
    address: str,
    export_key: Path | None,
    password_fd: int | None,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Open a user's mail for good: store it plain. Recorded, and told to the user.

    --export-key writes the private keys instead, as PEM sealed to a passphrase.
    """
    if export_key is None:
        _decrypt(config, address, password_fd, as_json)
        return
    if export_key.exists():
        message = f"{export_key} is there already: nothing is overwritten"
        raise UsageError(message)
    secret = read_secret(password_fd, PROMPT)
    passphrase = read_secret(passphrase_fd, "A passphrase for the key file", twice=True)
    reply = ask(config, AdminExport(address, secret, passphrase))
    descriptor = os.open(export_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for pem in reply["keys"]:
            file.write(base64.b64decode(pem))
    if as_json:
        print_json({"keys": len(reply["keys"]), "file": str(export_key)})
        return
    click.echo(f"{address}: {len(reply['keys'])} private keys in {export_key}")


def _decrypt(config: Config, address: str, password_fd: int | None, as_json: bool) -> None:
    """The account leaves, by the administrator's word, and its mail is decrypted."""
    secret = read_secret(password_fd, PROMPT)
    if ask(config, AccountShow(address))["state"] == "encrypted":
        ask(config, AdminLeave(address, secret))
    decrypt_account(config, address, secret, by="admin", as_json=as_json)


@admin_recovery.command()
@config_option
@json_option
def audit(config: Config, as_json: bool) -> None:
    """List every use of admin recovery; an alarm (5) where the list was changed."""
    entries = ask(config, AuditList())["entries"]
    if as_json:
        print_json(entries)
        return
    print_table(["", "WHEN", "WHAT", "ACCOUNT", ""], [_row(entry) for entry in entries])


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    detail = ", ".join(f"{k} {v}" for k, v in json.loads(entry["detail"]).items())
    at = when(entry["at"])
    return (entry["number"], at, entry["event"], entry["account_id"] or "-", detail)


def _print_status(reply: Reply, as_json: bool) -> None:
    if as_json:
        print_json(dict(reply.fields))
        return
    rows = [
        ("policy", reply["policy"]),
        ("key", reply["key_id"] or "none is set"),
        ("encrypted accounts", reply["accounts"]),
        ("  it opens", reply["by_key"]),
        ("  the key before opens", reply["by_previous"]),
        ("  refused by their users", reply["refused"]),
        ("  new keys at next login", reply["rekey_due"]),
    ]
    if reply["policy"] == "forbidden" and reply["older_copies_until"]:
        rows.append(("older copies of the store", f"until {when(reply['older_copies_until'])}"))
    for label, value in rows:
        click.echo(f"{label + ':':<26}{value}")
