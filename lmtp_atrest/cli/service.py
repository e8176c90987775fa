"""Setting a site up and running it: init, serve, config, keystore, site-key."""

import sys
from importlib.resources import files
from pathlib import Path

import click
import yaml

from lmtp_atrest import config as config_module
from lmtp_atrest import site, telemetry
from lmtp_atrest.cli.terminal import (
    DEFAULT_CONFIG,
    config_option,
    json_option,
    note,
    print_json,
    print_table,
)
from lmtp_atrest.config import Config
from lmtp_atrest.errors import ConfigError, UsageError


@click.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file; a commented one is written where there is none.",
)
def init(path: Path) -> None:
    """Make directories, site key and stores, and a first configuration.

    Whatever exists is left as it is, so init can be run again after the configuration was edited.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((files("lmtp_atrest") / "lmtp-atrest.yaml").read_text(encoding="utf-8"))
        path.chmod(0o644)
        click.echo(f"made {path}")
    config = config_module.load(path)
    for made in site.initialise(config):
        click.echo(f"made {made}")
    note(f"keep a copy of {config.site.key} and {config.site.public} away from this machine")


@click.command()
@config_option
@click.option(
    "--only",
    type=click.Choice(["lmtp", "unlock", "evict", "convert", "portal"]),
    multiple=True,
    help="Run this service instead of all; may be repeated.",
)
def serve(config: Config, only: tuple[str, ...]) -> None:
    """Run the services in the foreground until SIGTERM."""
    # Imported here: no other command needs the servers, and they take a third of a second.
    from lmtp_atrest import daemon
    from lmtp_atrest.doctor.enrolment import suitable

    as_json = {"auto": None, "json": True, "console": False}[config.log.format]
    telemetry.configure(config.log.level, json=as_json)
    if not only or {"unlock", "portal"} & set(only):
        config = suitable(config)
    sys.exit(daemon.serve(config, only))


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command("check")
@config_option
def config_check(config: Config) -> None:
    """Say whether the configuration is without fault; all faults are listed at once."""
    if (fault := site.enrolment_fault(config)) is not None:
        raise ConfigError([fault])
    click.echo("the configuration is without fault")


@config.command("show")
@config_option
@json_option
def config_show(config: Config, as_json: bool) -> None:
    """Print every setting as it is in force, defaults included."""
    values = config.model_dump(mode="json")
    if as_json:
        print_json(values)
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


@click.group()
def keystore() -> None:
    """Upgrade the stores, or accept restored ones. Stop the services first."""


@keystore.command("upgrade")
@config_option
@json_option
def keystore_upgrade(config: Config, as_json: bool) -> None:
    """Bring the stores to the schema of this program."""
    report = site.upgrade(config)
    if as_json:
        print_json([{"store": n, "before": before, "now": now} for n, before, now in report])
    else:
        print_table(["STORE", "BEFORE", "NOW"], [(n, b or "-", now) for n, b, now in report])


@keystore.command("accept-restore")
@config_option
@click.option("--yes", is_flag=True, help="Do it. Without this, only say what would be done.")
@json_option
def keystore_accept_restore(config: Config, yes: bool, as_json: bool) -> None:
    """Let a restored store count again; names the accounts concerned.

    Until then a store that is older than what was seen is taken for an attack: logins and mail of
    these accounts are put off.
    """
    older_admin = site.restored_admin(config)
    items = site.accept_restore(config) if yes else site.restored_accounts(config)
    if as_json:
        print_json([{"names": item.seen.names, "fate": item.fate.name.lower()} for item in items])
        return
    print_table(["ACCOUNT", "WHAT HAPPENS"], [(i.seen.names[0], i.fate.value) for i in items])
    if older_admin:
        click.echo(
            "admin recovery: the newest record comes back, or counts as it was in the backup"
        )
    elif not items:
        click.echo("no account is older than what was seen")
    if (items or older_admin) and not yes:
        note("nothing was changed; add --yes to do this")


@click.group("site-key")
def site_key() -> None:
    """Change the key that signs the records. Stop the services first."""


@site_key.command("add")
@config_option
def site_key_add(config: Config) -> None:
    """Make a new signing key; it signs from the next start on, older ones still count."""
    click.echo(f"added {site.add_site_key(config)}")
    note(f"copy {config.site.public} to every node that delivers, then: site-key resign")


@site_key.command("resign")
@config_option
def site_key_resign(config: Config) -> None:
    """Sign every record with the newest key."""
    click.echo(f"signed {site.resign(config)} records anew")


@site_key.command("retire")
@config_option
def site_key_retire(config: Config) -> None:
    """Forget all signing keys but the newest."""
    retired = site.retire_site_keys(config)
    if not retired:
        message = "there is one site key only: site-key add makes another"
        raise UsageError(message)
    for name in retired:
        click.echo(f"retired {name}")
