"""`ingestor`: the commands by name, and what an error means for the exit code.

0 done, 1 failed, 2 the settings, the command line or the place can't be used, 3 the venue refused the key,
4 rows could not be saved, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

import ingestor
from ingestor.errors import IngestorError

COMMANDS = {
    "init": ("ingestor.cli.init:init", "Write config/ingestor.yaml and config/.env to start from."),
    "check": ("ingestor.cli.check:check", "Check settings, key and disk; print what would run."),
    "run": ("ingestor.cli.run:run", "Record trades until stopped."),
    "reload": ("ingestor.cli.reload:reload", "Let a running recorder take a changed list of tickers over."),
    "status": ("ingestor.cli.status:status", "Say how a running recorder is."),
    "top": ("ingestor.cli.top:top", "Watch it: a row a symbol, live."),
    "tail": ("ingestor.cli.tail:tail", "Print trades as they are recorded."),
    "serve": ("ingestor.cli.serve:serve", "Serve live prices, history and a page to everybody here."),
    "coverage": ("ingestor.cli.coverage:coverage", "Say when the recorder could see, and when not."),
    "verify": ("ingestor.cli.verify:verify", "Recount every file against the ledger."),
    "head": ("ingestor.cli.head:head", "Print the first trades of a recording."),
    "bars": ("ingestor.cli.bars:bars", "Print bars, each with the share of it that was recorded."),
    "describe": ("ingestor.cli.describe:describe", "Say what a recording holds, symbol by symbol."),
    "plot": ("ingestor.cli.plot:plot", "Draw bars, indicators and gaps, or the newest trades in a window."),
    "dashboard": ("ingestor.cli.dashboard:dashboard", "Show candlesticks and indicators in the browser, live."),
    "export": ("ingestor.cli.export:export", "Write trades to CSV, Parquet, JSON Lines or SQLite."),
    "compact": ("ingestor.cli.compact:compact", "Merge the files of each closed day into one."),
    "install": ("ingestor.cli.install:install", "Install the systemd service, or show what that would do."),
    "simulate": ("ingestor.cli.simulate:simulate", "Be a venue: serve simulated trades."),
    "demo": ("ingestor.cli.demo:demo", "Record a simulated venue for 20 s and show the result."),
}
"""Name, where it is, and its line in `--help`, which so needs no command's imports."""


class _Commands(click.Group):
    """Imports a command when it is called by its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  the same
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  the same
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ingestor.__version__, prog_name="ingestor")
def cli() -> None:
    """Record a venue's trades to Parquet and CSV, and know for every minute whether silence was the market
    or you.

    New here? `ingestor demo` needs no key. Then `ingestor init`, put your key in, and `ingestor run`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code; an error is one clear message on stderr."""
    try:
        result = cli.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except IngestorError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    sys.exit(result if isinstance(result, int) else 0)


def _print_error(error: IngestorError) -> None:
    """`error: …`, a line for each line of the error."""
    from ingestor.logs import redactor_in_force  # structlog would slow `--help` down

    redact = redactor_in_force()
    for line in str(error).splitlines():
        click.echo(f"error: {redact(line)}", err=True)
