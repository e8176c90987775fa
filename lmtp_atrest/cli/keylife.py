"""The life of an account's keys: codes, passwords, new keys, freezing, app passwords."""

from pathlib import Path

import click

from lmtp_atrest.cli.asking import (
    ask,
    change_from_stdin,
    change_from_terminal,
    confirm_address,
    fd_option,
    page_option,
    print_changed,
    stdin_option,
)
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
from lmtp_atrest.errors import NotFound, UsageError
from lmtp_atrest.unlock.requests import (
    AccountAdmin,
    AccountCode,
    AccountDisable,
    AccountFreeze,
    AccountJoin,
    AccountPassword,
    AccountPasswordAbort,
    AccountRecover,
    AccountReset,
    AccountRotate,
    AccountShow,
    AccountSuspend,
    AccountThaw,
    AppPasswordAdd,
    AppPasswordRemove,
)

COMPROMISED = click.option(
    "--compromised", is_flag=True, help="Somebody may know what opened the mail before: new keys."
)


@click.command()
@config_option
@click.argument("address")
@click.option("--mail-to", default="", metavar="ADDRESS", help="Mail it there, off this site.")
@page_option
@password_option
@json_option
def code(
    config: Config,
    address: str,
    mail_to: str,
    page: Path | None,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Make a recovery code, and show it once. An earlier code is spent."""
    secret = read_secret(password_fd, f"The password of {address}")
    print_changed(ask(config, AccountCode(address, secret, mail_to)), as_json, page)


@click.command()
@config_option
@click.argument("address")
@COMPROMISED
@page_option
@fd_option("code", "the recovery code")
@fd_option("new-password", "the new password")
@json_option
def recover(
    config: Config,
    address: str,
    compromised: bool,
    page: Path | None,
    code_fd: int | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Open the mail with the recovery code, for a new password; shows a new code.

    The new password is the one that the user logs in with from now on: set it at the site too.
    """
    typed = read_secret(code_fd, f"The recovery code of {address}")
    new = read_secret(new_password_fd, "The new password", twice=True)
    print_changed(ask(config, AccountRecover(address, typed, new, compromised)), as_json, page)


@click.command()
@config_option
@click.argument("address", required=False)
@stdin_option
@password_option
@fd_option("new-password", "the new password")
@json_option
def password(
    config: Config,
    address: str | None,
    from_stdin: bool,
    password_fd: int | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Change the password, at the site (site.password_command) and of encrypted mail.

    Both passwords open the mail until the first login with the new one.
    """
    if from_stdin:
        address, old, new = change_from_stdin()
    else:
        asked = (password_fd, "The present password"), (new_password_fd, "The new password")
        address, old, new = change_from_terminal(address, *asked)
    print_changed(ask(config, AccountPassword(address, old, new)), as_json)


@click.command("password-abort")
@config_option
@click.argument("address")
@json_option
def password_abort(config: Config, address: str, as_json: bool) -> None:
    """Take back a password change under way: the new password opens nothing."""
    print_changed(ask(config, AccountPasswordAbort(address)), as_json)


@click.command()
@config_option
@click.argument("address", required=False)
@click.option(
    "--by",
    type=click.Choice(["password", "code", "admin"]),
    default="password",
    show_default=True,
    help="What the old secret is: password, recovery code, or admin recovery password.",
)
@COMPROMISED
@click.option(
    "--accept-admin",
    is_flag=True,
    help="Older mail that admin recovery could not open may be opened by it from now on.",
)
@click.option("--if-encrypted", is_flag=True, help="Well, and nothing done, for other accounts.")
@stdin_option
@password_option
@fd_option("new-password", "the password of now")
@json_option
def join(
    config: Config,
    address: str | None,
    by: str,
    compromised: bool,
    accept_admin: bool,
    if_encrypted: bool,
    from_stdin: bool,
    password_fd: int | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Have the site's present password open what an older secret opens.

    For a password that was changed at the site, and for mail that a reset has closed.
    """
    if from_stdin:
        address, old, new = change_from_stdin()
    else:
        asked = (password_fd, f"The old {by}"), (new_password_fd, "The password of now")
        address, old, new = change_from_terminal(address, *asked)
    if if_encrypted and not _is_encrypted(config, address):
        return
    request = AccountJoin(address, new, old, by, compromised, accept_admin)
    print_changed(ask(config, request), as_json)


def _is_encrypted(config: Config, address: str) -> bool:
    try:
        return bool(ask(config, AccountShow(address))["key_ids"])
    except NotFound:
        return False


@click.command()
@config_option
@click.argument("address")
@click.option("--yes", metavar="ADDRESS", help="The address once more, instead of typing it.")
@page_option
@fd_option("new-password", "the password of now")
@json_option
def reset(
    config: Config,
    address: str,
    yes: str | None,
    page: Path | None,
    new_password_fd: int | None,
    as_json: bool,
) -> None:
    """Begin anew where nothing opens the mail: new keys for new mail; old mail stays closed.

    Nothing is deleted. The old password, a recovery code or admin recovery can open the old mail
    again later: account join.
    """
    shown = ask(config, AccountShow(address)).fields
    since = when(shown["created"])
    closes = f"This closes all mail of {address} up to now (account of {since})."
    confirm_address(address, yes, closes)
    new = read_secret(new_password_fd, f"The password of {address} now", twice=True)
    print_changed(ask(config, AccountReset(address, new)), as_json, page)


@click.command()
@config_option
@click.argument("address")
@COMPROMISED
@password_option
@json_option
def rotate(
    config: Config, address: str, compromised: bool, password_fd: int | None, as_json: bool
) -> None:
    """New keys for new mail; old keys stay for old mail.

    With --compromised all mail is marked to be encrypted anew, too.
    """
    secret = read_secret(password_fd, f"The password of {address}")
    print_changed(ask(config, AccountRotate(address, secret, compromised)), as_json)


@click.command()
@config_option
@click.argument("address")
@click.option("--undo", is_flag=True, help="Go on encrypting after all.")
@password_option
@json_option
def disable(
    config: Config, address: str, undo: bool, password_fd: int | None, as_json: bool
) -> None:
    """Store new mail plain again; what is encrypted still opens with the password."""
    secret = read_secret(password_fd, f"The password of {address}")
    print_changed(ask(config, AccountDisable(address, secret, undo)), as_json)


@click.command()
@config_option
@click.argument("address", required=False)
@click.option("--all", "everybody", is_flag=True, help="All accounts of the site.")
@json_option
def freeze(config: Config, address: str | None, everybody: bool, as_json: bool) -> None:
    """Let nobody open the mail; it goes on arriving, encrypted.

    For the day when the server, or whoever runs it, may be in wrong hands.
    """
    if (address is None) != everybody:
        message = "give an address, or --all"
        raise UsageError(message)
    reply = ask(config, AccountFreeze(address or ""))
    if address is not None:
        print_changed(reply, as_json)
    elif as_json:
        print_json(dict(reply.fields))
    else:
        click.echo(f"{reply['accounts']} accounts frozen")


@click.command()
@config_option
@click.argument("address")
@click.option("--by", type=click.Choice(["code", "password"]), default="code", show_default=True)
@password_option
@json_option
def thaw(config: Config, address: str, by: str, password_fd: int | None, as_json: bool) -> None:
    """Let a frozen account be opened again."""
    secret = read_secret(password_fd, f"The {by} of {address}")
    print_changed(ask(config, AccountThaw(address, secret, by)), as_json)


@click.command()
@config_option
@click.argument("address")
@click.option("--undo", is_flag=True, help="Let them count again.")
@json_option
def suspend(config: Config, address: str, undo: bool, as_json: bool) -> None:
    """Let app passwords of an account not count: they are asked for before the site's own."""
    print_changed(ask(config, AccountSuspend(address, not undo)), as_json)


@click.command("admin-recovery")
@config_option
@click.argument("address")
@click.option("--accept/--refuse", "wanted", required=True, help="The user's own word.")
@password_option
@json_option
def admin_recovery(
    config: Config, address: str, wanted: bool, password_fd: int | None, as_json: bool
) -> None:
    """Whether the admin recovery password opens this account, where the site leaves it open."""
    secret = read_secret(password_fd, f"The password of {address}")
    print_changed(ask(config, AccountAdmin(address, secret, wanted)), as_json)


# ---- app passwords


@click.group("app-password")
def app_password() -> None:
    """Passwords for single mail programs."""


@app_password.command()
@config_option
@click.argument("address")
@click.argument("label")
@password_option
@json_option
def add(config: Config, address: str, label: str, password_fd: int | None, as_json: bool) -> None:
    """Make an app password, and show it once. LABEL says which program it is for."""
    secret = read_secret(password_fd, f"The password of {address}")
    reply = ask(config, AppPasswordAdd(address, secret, label))
    print_changed(reply, as_json)
    if not as_json:
        click.echo(f"\n    {reply['app_password']}\n\nIt is shown once. To take it back:")
        click.echo(f"lmtp-atrest account app-password remove {address} {reply['handle']}")


@app_password.command("list")
@config_option
@click.argument("address")
@json_option
def list_(config: Config, address: str, as_json: bool) -> None:
    """List the app passwords of an account."""
    slots = ask(config, AccountShow(address))["slots"]
    found = [slot for slot in slots if slot["kind"] == "app-password"]
    if as_json:
        print_json(found)
        return
    rows = [(s["id"][:4], s["label"], when(s["created"]), s["used"] or "never") for s in found]
    print_table(["HANDLE", "LABEL", "MADE", "LAST USED"], rows)


@app_password.command()
@config_option
@click.argument("address")
@click.argument("handle")
@click.option("--now", is_flag=True, help="Ask for the account's password, for new keys at once.")
@password_option
@json_option
def remove(
    config: Config,
    address: str,
    handle: str,
    now: bool,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Take an app password back; new keys follow at the next login, or now."""
    with_secret = now or password_fd is not None
    secret = read_secret(password_fd, f"The password of {address}") if with_secret else None
    print_changed(ask(config, AppPasswordRemove(address, handle, secret)), as_json)


COMMANDS = (
    code,
    recover,
    password,
    password_abort,
    join,
    reset,
    rotate,
    disable,
    freeze,
    thaw,
    suspend,
    admin_recovery,
    app_password,
)
