"""doctor: what is wrong at this site, and the way out."""

from collections.abc import Callable, Iterator
from itertools import groupby

import click

from lmtp_atrest import doctor as checks
from lmtp_atrest.cli.asking import ask
from lmtp_atrest.cli.terminal import config_option, json_option, note, print_json
from lmtp_atrest.config import Config
from lmtp_atrest.doctor import facts as facts_module
from lmtp_atrest.doctor import postfix, services
from lmtp_atrest.doctor.facts import Facts, User
from lmtp_atrest.doctor.findings import Finding, Level, problem, warning
from lmtp_atrest.errors import AtRestError, TemporaryFailure, WrongState
from lmtp_atrest.unlock.requests import AccountList

SAME_PRINTED = 3

Check = Callable[[], Iterator[Finding]]


@click.command()
@config_option
@click.option(
    "--postconf",
    default="postconf",
    show_default=True,
    help="How to ask Postfix for its settings.",
)
@json_option
def doctor(config: Config, postconf: str, as_json: bool) -> int:
    """Look for what would lose, hide or show mail, and for what does not answer.

    Run it as root on the machine of the site's Dovecot. Ends with 10 where there is a problem;
    warnings are none. What `account enable` refuses is marked so.
    """
    found = [(title, list(check())) for title, check in _checks(config, postconf).items()]
    if as_json:
        print_json([line for title, findings in found for line in _as_json(title, findings)])
    else:
        for title, findings in found:
            _print(title, findings)
    worst = [f for _, findings in found for f in findings if f.level is Level.PROBLEM]
    return WrongState.exit_code if worst else 0


def _checks(config: Config, postconf: str) -> dict[str, Check]:
    """Everything to look at, by its title."""
    users, trouble = _users(config)
    try:
        facts = facts_module.collect(config, users)
    except TemporaryFailure as error:
        unseen = problem("doveconf", str(error), "run doctor as root, on Dovecot's machine")
        facts = Facts(config, users=tuple(users))
        checking: dict[str, Check] = {"Dovecot's settings": lambda: iter([unseen])}
    else:
        checking = {"Dovecot's settings": lambda: _seen(facts)}
    checking |= {title: _on(check, facts) for title, check in checks.CHECKS.items()}
    checking["services"] = lambda: services.running(config)
    checking["accounts"] = lambda: iter(trouble)
    checking["enrolment"] = lambda: services.enrolment(config)
    checking["user look-up"] = lambda: services.directory(facts)
    checking["Postfix"] = lambda: postfix.check(config, postfix.read(postconf))
    return checking


def _on(check: Callable[[Facts], Iterator[Finding]], facts: Facts) -> Check:
    return lambda: check(facts)


def _seen(facts: Facts) -> Iterator[Finding]:
    if facts.doveconf is None and facts.config.directory.source == "dovecot":
        yield warning(
            "doveconf",
            "directory.doveconf is null: the site's Dovecot was not looked at",
            "set directory.doveconf: doveconf -n",
        )


def _users(config: Config) -> tuple[list[User], list[Finding]]:
    """The accounts of this site; a warning instead, where the unlock service does not say."""
    try:
        accounts = ask(config, AccountList())["accounts"]
    except AtRestError as error:
        unseen = warning(
            "accounts", f"the accounts were not looked at: {error}", "start the unlock service"
        )
        return [], [unseen]
    return [User(a["names"][0], a["home"], a["maildir"]) for a in accounts], []


def _print(title: str, findings: list[Finding]) -> None:
    if not findings:
        click.echo(f"ok       {title}")
    for finding in _few_of_each(findings):
        refused = " (account enable refuses)" if finding.refuses else ""
        click.echo(f"{finding.level:<8} {finding.name}: {finding.meaning}{refused}")
        click.echo(f"         → {finding.way_out}")


def _few_of_each(findings: list[Finding]) -> Iterator[Finding]:
    """Not the same of ten thousand accounts; `--json` has them all."""
    for name, same in groupby(findings, lambda finding: finding.name):
        group = list(same)
        yield from group[:SAME_PRINTED]
        if len(group) > SAME_PRINTED:
            note(f"{name}: {len(group) - SAME_PRINTED} more of these")


def _as_json(title: str, findings: list[Finding]) -> list[dict[str, str | bool]]:
    if not findings:
        return [{"check": title, "level": "ok"}]
    return [
        {
            "check": title,
            "level": str(finding.level),
            "name": finding.name,
            "meaning": finding.meaning,
            "way_out": finding.way_out,
            "refuses": finding.refuses,
        }
        for finding in findings
    ]
