"""The command line: parsing and printing only; what is decided is decided elsewhere.

Rules of this interface. Results go to standard output, everything else to standard error, each
line with the program's name before it; a hint what to do next stands on a line of its own. Secrets
come from a prompt on the terminal or from a file descriptor, never from an argument or the
environment. `--json` prints one JSON value. Exit codes: 0 well; 1 unforeseen; 2 usage;
3 configuration; 4 temporary trouble; 5 alarm; 6 not found; 7 wrong secret; 8 damaged; 9 changed
meanwhile; 10 not possible in this state; 11 busy; 12 a code with a typing error.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from lmtp_atrest.errors import AtRestError

# In the order of a day's work. A module is imported when one of its commands is called: the
# stores' library alone takes a third of a second.
COMMANDS = {
    "init": "service",
    "serve": "service",
    "config": "service",
    "account": "account",
    "admin-recovery": "adminrecovery",
    "session": "session",
    "mail": "mail",
    "conversion": "conversion",
    "backup": "backup",
    "message": "message",
    "keystore": "service",
    "site-key": "service",
    "doctor": "doctor",
    "demo": "demo",
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lmtp_atrest.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("lmtp-atrest"), prog_name="lmtp-atrest")
def cli() -> None:
    """Encrypts each user's mail at delivery to a key that only that user's password opens."""


def run(arguments: Sequence[str]) -> int:
    """One command; its exit code. What went wrong stands on standard error."""
    try:
        code = cli(list(arguments), standalone_mode=False)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except AtRestError as error:
        for line in str(error).splitlines():
            click.echo(f"lmtp-atrest: {line}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("lmtp-atrest: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; nothing is wrong.
        sys.stderr.close()
        return 141
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
