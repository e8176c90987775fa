"""Proving that mail opens, and, on request, mending what does not.

Mail is read as the owner of the Maildirs; message keys come under a grant, which the services made
from a secret that was typed here.
"""

import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from lmtp_atrest import users
from lmtp_atrest.cli.backup import mailbox_of, pages
from lmtp_atrest.cli.progress import KeptOpen, Ticker
from lmtp_atrest.cli.terminal import (
    config_option,
    json_option,
    note,
    password_option,
    print_json,
    read_secret,
)
from lmtp_atrest.config import Config
from lmtp_atrest.conversion import Kind, Place, Report, mending, verify
from lmtp_atrest.conversion.manifest import (
    Account,
    Difference,
    Manifest,
    differing_files,
    differing_rows,
    side_by_side,
)
from lmtp_atrest.crypto.dcrypt import Unwrap
from lmtp_atrest.crypto.records import SitePublic
from lmtp_atrest.errors import AtRestError, Damaged, NotFound, UsageError, WrongSecret, WrongState
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import GrantUnwrap, SyncClient
from lmtp_atrest.unlock.requests import AccountList, AccountShow, ConvertDone, ConvertGrant, Role

# Message keys that one verification may ask for; a grant that ends in the middle ends it.
GRANT_COUNT = "50000000"
# What a manifest says of these is no fault: mail comes, and is moved about.
HARMLESS = ("same", "added", "moved")

F = TypeVar("F", bound=Callable[..., Any])


def by_option(function: F) -> F:
    """`--by`: what opens the mail."""
    return click.option(
        "--by",
        type=click.Choice(["password", "code", "admin"]),
        help="What opens the mail.  [default: password]",
    )(function)


@click.command("verify")
@config_option
@click.argument("address", required=False)
@click.option(
    "--all", "everybody", is_flag=True, help="All accounts; opened with --by admin only."
)
@click.option("--headers-only", is_flag=True, help="Without a password: headers, sizes, key ids.")
@click.option(
    "--manifest",
    "manifest_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Without a password: compare with what `backup manifest` wrote.",
)
@by_option
@password_option
@json_option
def verify_(
    config: Config,
    address: str | None,
    everybody: bool,
    headers_only: bool,
    manifest_path: Path | None,
    by: str | None,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Prove that every message opens: its tag, the sizes in its name, its key. 8 where not."""
    _check_usage(address, everybody, by, closed=headers_only or manifest_path is not None)
    if manifest_path is not None:
        _compare(config, address, manifest_path, as_json)
        return
    closed = headers_only or (everybody and by is None)
    secret = None
    if closed:
        note("headers, sizes and key ids only: nothing was opened")
    else:
        secret = read_secret(password_fd, f"The {by or 'password'} of {address or 'the site'}")
    with _admin(config) as client:
        named = [address] if address else _names(client)
        users.become(config.lmtp.user)
        keep_open = KeptOpen(client)
        found = []
        for name in named:
            shown = client.ask(AccountShow(name)).fields
            ticking = _Ticking(name, keep_open)
            one = _Verifying(config, client, name, shown, ticking)
            found.append(one.run(secret, by or "password", everybody))
    _print_verified(found, everybody, as_json)


def _check_usage(address: str | None, everybody: bool, by: str | None, *, closed: bool) -> None:
    if (address is None) != everybody:
        message = "give an address, or --all"
    elif closed and by is not None:
        message = "--by opens the mail, which --headers-only and --manifest do not"
    elif everybody and by not in (None, "admin"):
        message = "only --by admin opens the mail of --all"
    else:
        return
    raise UsageError(message)


@dataclass(frozen=True, slots=True)
class _Verified:
    name: str
    report: Report
    not_opened: str = ""

    @property
    def well(self) -> bool:
        return self.report.well and not self.not_opened

    def body(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **asdict(self.report),
            "not_opened": self.not_opened,
            "well": self.well,
        }


class _Ticking:
    """How far a verification is, and a connection that it will need again."""

    def __init__(self, name: str, keep_open: KeptOpen) -> None:
        self._name, self._keep_open, self._ticker = name, keep_open, Ticker()

    def __call__(self, report: Report) -> None:
        self._keep_open()
        self._ticker(f"{self._name}: {report.sealed + report.plain} messages")


@dataclass(frozen=True, slots=True)
class _Verifying:
    """The verification of one account."""

    config: Config
    client: SyncClient
    name: str
    shown: Any
    ticking: _Ticking

    def run(self, secret: Secret | None, by: str, everybody: bool) -> _Verified:
        """With a secret open all, else by headers; one of many that does not open is told."""
        why = ""
        if secret is not None and not (everybody and not self.shown["key_ids"]):
            try:
                with _granted(self.config, self.client, self.name, secret, by) as unwrap:
                    return _Verified(self.name, self._report(unwrap, None))
            except (WrongState, WrongSecret) as error:
                if not everybody:
                    raise
                why = str(error)
        return _Verified(self.name, self._report(None, frozenset(self.shown["key_ids"])), why)

    def _report(self, unwrap: Unwrap | None, known_keys: frozenset[str] | None) -> Report:
        try:
            with _place(self.config, self.shown).open() as maildir:
                return verify(maildir, unwrap, known_keys, self.ticking)
        except NotFound:
            return Report()  # no message yet


def _print_verified(found: Sequence[_Verified], everybody: bool, as_json: bool) -> None:
    if as_json:
        bodies = [one.body() for one in found]
        print_json(bodies if everybody else bodies[0])
    else:
        for one in found:
            _print_report(one)
    lines = [f"{one.name}: {one.not_opened}" for one in found if one.not_opened]
    for one in found:
        before = f"{one.name}: " if everybody else ""
        lines += [f"{before}{fault.path}: {fault.reason}" for fault in one.report.faults]
    if lines:
        raise Damaged("\n".join(lines))


def _print_report(one: _Verified) -> None:
    report = one.report
    text = f"{report.sealed} encrypted, {report.plain} plain, {len(report.faults)} faulty"
    if report.quarantined:
        text += f", {report.quarantined} set aside before"
    click.echo(f"{one.name}: {text}")
    for key_id, count in report.missing.items():
        click.echo(f"key {key_id} is missing: {count} messages need it")


# ---- by a manifest


@dataclass(slots=True)
class _Compared:
    """How one account, or, without a name, the site is beside the manifest."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        self.counts[difference.what] += 1
        if difference.what != "same":
            self.differences.append(difference)

    @property
    def well(self) -> bool:
        return all(what in HARMLESS for what in self.counts)


def _compare(config: Config, address: str | None, path: Path, as_json: bool) -> None:
    try:
        file = path.open("rb")
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise UsageError(message) from error
    with file, _admin(config) as client:
        manifest = Manifest(file, SitePublic.load(config.site.public))
        users.become(config.lmtp.user)
        found = list(_compared(config, client, manifest, address))
    moment = datetime.fromtimestamp(manifest.seal.created / 1000, UTC).isoformat()
    if as_json:
        accounts = [{**asdict(one), "counts": dict(one.counts), "well": one.well} for one in found]
        print_json({"manifest": moment, "accounts": accounts})
    else:
        note(f"compared with the manifest of {moment}")
        for one in found:
            _print_compared(one)
    wrong = [d.path for one in found for d in one.differences if d.what not in HARMLESS]
    if wrong:
        message = f"{len(wrong)} differences that new mail does not explain"
        raise Damaged(message)


def _compared(
    config: Config, client: SyncClient, manifest: Manifest, address: str | None
) -> Iterator[_Compared]:
    """Both are in the order of account ids; the manifest's first part is the site's."""
    site: dict[str, str] = {}
    keep_open, ticker = KeptOpen(client), Ticker()

    def present() -> Iterator[dict[str, Any]]:
        for page in pages(client, address):
            site.update(page["site"])
            yield from page["accounts"]

    now = list(present()) if address else present()
    wanted = {account["account"] for account in now} if isinstance(now, list) else None
    parts = (part for part in manifest.parts() if not part.account_id or _in(wanted, part))
    first = next(parts)
    for then, account in side_by_side(
        parts, iter(now), lambda part: part.account_id, lambda shown: str(shown["account"])
    ):
        one = _Compared(account["names"][0] if account else then.names[0] if then else "")
        if account is None:
            one.add(Difference("missing", f"account {then.account_id if then else ''}"))
        elif then is None and address:
            message = f"the manifest says nothing of {address}"
            raise NotFound(message)
        else:
            for difference in _differences(config, manifest, then, account):
                one.add(difference)
                ticker(f"{one.name}: {one.counts.total()}")
                keep_open()
        yield one
    if first.rows and not address:
        one = _Compared("")
        for difference in differing_rows(first.rows, site):
            one.add(difference)
        yield one


def _in(wanted: set[str] | None, part: Account) -> bool:
    return wanted is None or part.account_id in wanted


def _differences(
    config: Config, manifest: Manifest, then: Account | None, account: dict[str, Any]
) -> Iterator[Difference]:
    then = then or Account(account["account"])
    yield from differing_rows(then.rows, account["rows"])
    place = mailbox_of(config, account)
    if place is None:
        return
    with contextlib.ExitStack() as stack:
        try:
            maildir = stack.enter_context(place.open())
        except NotFound:
            maildir = None
        yield from differing_files(manifest, then, maildir, place.root)


def _print_compared(one: _Compared) -> None:
    for difference in one.differences:
        click.echo(f"{difference.what}: {difference.path}")
    said = ", ".join(f"{one.counts[what]} {what}" for what in sorted(one.counts)) or "nothing"
    click.echo(f"{one.name or 'the site'}: {said}")


# ---- on request


@click.command("repair")
@config_option
@click.argument("address")
@click.option("--yes", is_flag=True, help="Do it; else it is only said what would be done.")
@by_option
@password_option
@json_option
def repair(
    config: Config,
    address: str,
    yes: bool,
    by: str | None,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Correct wrong sizes in the names of encrypted messages.

    Dovecot knows a message by its name. Where its list of UIDs lies in the folder it is corrected
    too; else (CONTROL=) mail programs see the message go, and come as a new one.
    """
    # A plain end of the process would leave Dovecot's list of UIDs locked.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _opened(config, address, by, password_fd) as (place, unwrap), place.open() as maildir:
        wrong = [f for f in verify(maildir, unwrap).faults if f.kind is Kind.SIZES]
        if not as_json:
            for fault in wrong:
                click.echo(f"{fault.path}: {fault.reason}")
        done = mending.correct(maildir, wrong) if yes else 0
    _print_mended("sizes", len(wrong), done, yes, as_json)


@click.command("quarantine")
@config_option
@click.argument("address")
@click.option("--yes", is_flag=True, help="Do it; else it is only said what would be done.")
@click.option(
    "--missing-keys", is_flag=True, help="Also what is sealed to a key that is not here."
)
@by_option
@password_option
@json_option
def quarantine(
    config: Config,
    address: str,
    yes: bool,
    missing_keys: bool,
    by: str | None,
    password_fd: int | None,
    as_json: bool,
) -> None:
    """Move damaged messages to a folder Quarantine of the same mailbox.

    Nothing is removed. A message that only lacks its key stays, unless asked for: the key may
    come back with `account join`.
    """
    kinds = (Kind.DAMAGED, Kind.MISSING_KEY) if missing_keys else (Kind.DAMAGED,)
    with _opened(config, address, by, password_fd) as (place, unwrap), place.open() as maildir:
        closed = [fault for fault in verify(maildir, unwrap).faults if fault.kind in kinds]
        if not as_json:
            for fault in closed:
                click.echo(f"{fault.path}: {fault.reason}")
        done = mending.quarantine(maildir, closed, unwrap) if yes else 0
    _print_mended("closed", len(closed), done, yes, as_json)


def _print_mended(what: str, count: int, done: int, yes: bool, as_json: bool) -> None:
    if as_json:
        print_json({"found": count, "done": done})
    elif yes:
        click.echo(f"{done} of {count} done")
    else:
        click.echo(f"{count} found; nothing was changed: --yes does it")
    if yes and done < count:
        message = f"{count - done} stayed: moved or changed meanwhile; call again ({what})"
        raise Damaged(message)


# ---- accounts and what opens them


@contextlib.contextmanager
def _opened(
    config: Config, address: str, by: str | None, password_fd: int | None
) -> Iterator[tuple[Place, Unwrap]]:
    secret = read_secret(password_fd, f"The {by or 'password'} of {address}")
    with _admin(config) as client:
        place = _place(config, client.ask(AccountShow(address)).fields)
        users.become(config.lmtp.user)
        with _granted(config, client, address, secret, by or "password") as unwrap:
            yield place, unwrap


@contextlib.contextmanager
def _granted(
    config: Config, client: SyncClient, name: str, secret: Secret, by: str
) -> Iterator[Unwrap]:
    granted = client.ask(ConvertGrant(name, secret, "verify", GRANT_COUNT, by))
    role = Role.CONVERT if config.lmtp.user is not None else Role.ADMIN
    path, grant = config.unlock.sockets / f"{role}.sock", str(granted["grant"])
    unwrap = GrantUnwrap(path, role, grant)
    try:
        yield unwrap
    finally:
        unwrap.close()
        # Else the service would hold the vault key until the grant ends by itself.
        with contextlib.suppress(AtRestError), SyncClient(path, role) as done:
            done.ask(ConvertDone(grant))


def _place(config: Config, shown: Any) -> Place:
    return Place.of(config, shown["account"], shown["home"], shown["maildir"], 0)


def _admin(config: Config) -> SyncClient:
    return SyncClient(config.unlock.sockets / "admin.sock", Role.ADMIN)


def _names(client: SyncClient) -> list[str]:
    return [account["names"][0] for account in client.ask(AccountList())["accounts"]]
