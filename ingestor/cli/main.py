"""`ingestor`: the commands by name, and what an error means for the exit code.

0 done, 1 failed, 2 the settings, the command line or the place can't be used, 3 the venue refused the key,
4 rows could not be saved, 130 interrupted.
"""

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import TextIO

import click

import ingestor
from ingestor.errors import IngestorError
from ingestor.system import CLOUDS, RARE, UNUSED, postpone, refuse, use_system_allocator
from ingestor.texts import escape

COMMANDS = {
    "init": ("ingestor.cli.setup:init", "Write config/ingestor.yaml and config/.env to start from."),
    "check": ("ingestor.cli.check:check", "Check settings, key and disk; print what would run."),
    "symbols": ("ingestor.cli.setup:symbols", "Print the symbols that the venue has, or write them to a file."),
    "run": ("ingestor.cli.control:run", "Record trades until stopped."),
    "stop": ("ingestor.cli.control:stop", "Stop a running recorder in order, and wait for it."),
    "reload": ("ingestor.cli.control:reload", "Have a running recorder take over a changed list of tickers."),
    "status": ("ingestor.cli.status:status", "Show the status of a running recorder."),
    "alerts": ("ingestor.cli.control:alerts", "Send a test message to each receiver of alerts."),
    "top": ("ingestor.cli.top:top", "Watch it live, with a row per symbol."),
    "tail": ("ingestor.cli.read:tail", "Print trades as they are recorded."),
    "serve": ("ingestor.cli.serve:serve", "Serve live prices, history and a page to this machine."),
    "coverage": ("ingestor.cli.read:coverage", "Show when each symbol was recorded, and when not."),
    "verify": ("ingestor.cli.upkeep:verify", "Recount every file against the ledger."),
    "head": ("ingestor.cli.read:head", "Print the first trades of a recording."),
    "bars": ("ingestor.cli.read:bars", "Print bars, each with the share of it that was recorded."),
    "describe": ("ingestor.cli.read:describe", "Summarize a recording, with a row per symbol."),
    "plot": ("ingestor.cli.charts:plot", "Draw bars, indicators and gaps, or the newest trades in a window."),
    "dashboard": ("ingestor.cli.charts:dashboard", "Show candlesticks and indicators in the browser, live."),
    "export": ("ingestor.cli.read:export", "Write trades to a file, or for a backtester."),
    "compact": ("ingestor.cli.upkeep:compact", "Merge the files of each closed day into one."),
    "backfill": ("ingestor.cli.backfill:backfill", "Fill gaps from the history that the venue serves."),
    "audit": ("ingestor.cli.backfill:audit", "Compare a day with the history that the venue serves."),
    "import": ("ingestor.cli.backfill:import_", "Import trades from CSV and Parquet files."),
    "merge": ("ingestor.cli.merge:merge", "Make one recording of several of the same venue."),
    "raw": ("ingestor.cli.raw:raw", "Print frames as they came."),
    "redecode": ("ingestor.cli.raw:redecode", "Decode frames again, and show what differs."),
    "publish": ("ingestor.cli.merge:publish", "Make a data set to hand on, with coverage and a data card."),
    "install": ("ingestor.cli.setup:install", "Install the systemd service, or show what that would do."),
    "simulate": ("ingestor.cli.simulate:simulate", "Serve simulated trades, as a venue would."),
    "demo": ("ingestor.cli.demo:demo", "Record a simulated venue for 20 s and show the result."),
}
"""Of each command its place and its line in `--help`, which therefore imports no command."""

WITH_NUMPY = frozenset({"plot", "dashboard", "demo", "top", "hftbacktest", "nautilus"})
"""These also draw, with numpy, pandas or rich, or are formats of libraries that do. The others work on columns alone.
"""

_OF_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EPIPE, errno.EIO)
"""Errors that mean, where no file is named, that stdout takes no more."""


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS, n=1)
            if near:
                ctx.fail(f"No such command {name!r}: did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  the same
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ingestor.__version__, prog_name="ingestor")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Record a venue's trades to Parquet and CSV, and know for every minute whether silence was the market
    or you.

    New here? `ingestor demo` needs no key. Then `ingestor init`, put your key in, and `ingestor run`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; a warning or an error is one clear message on stderr.

    For a process of its own: where no argument is the name of a command that needs them, it can't import numpy and
    pandas afterwards, nor a recorder the stores of a cloud; and `RARE` modules are imported when they are used.
    """
    line = list(sys.argv[1:] if arguments is None else arguments)
    words = set(line)
    postpone(RARE)
    if not WITH_NUMPY & {word.removeprefix("--format=") for word in words}:
        refuse(UNUSED)
    if line[:1] == ["run"]:
        use_system_allocator()
        refuse(CLOUDS)
    if words & COMMANDS.keys():  # until a command says otherwise: what is logged goes to stderr, data alone to stdout
        from ingestor.logs import configure_logs

        configure_logs("warning", "auto", [])
    # A terminal or file that knows few letters gets the others escaped; one that is closed is an error when written to,
    # and none to a command that prints nothing.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    elif isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():  # which puts back what shows them
        warnings.showwarning = _print_warning
        try:
            code: str | int | None = _run(arguments)
        except SystemExit as end:
            code = end.code
        try:
            sys.stdout.flush()  # what the disk refuses now would be a traceback at the interpreter's end
        except OSError as error:
            code = _end_of_output(error)
        sys.exit(code)


def _end_of_output(error: OSError) -> int:
    """Whoever read it has left, which is no error to speak of; anything else is."""
    if error.errno != errno.EPIPE:
        _print_error(f"can't write the output: {error.strerror or error}")
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _run(arguments: Sequence[str] | None) -> int:
    """Run it, and return the exit code."""
    try:
        result = cli.main(arguments, prog_name="ingestor", standalone_mode=False)
    except click.ClickException as error:
        text = error.format_message().removesuffix(".")
        told = escape(text[:1].lower() + text[1:], keep="\n")
        if isinstance(error, click.UsageError) and error.ctx is not None and "unexpected extra argument" in told:
            takes_symbols = any(one.name == "symbols" for one in error.ctx.command.params)
            told += ": symbols are named by --symbols A,B" if takes_symbols else ""
        click.echo(f"error: {told}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"see {error.ctx.command_path} --help", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except IngestorError as error:
        _print_error(str(error))
        return error.exit_code
    except OSError as error:
        return _end_of_output(error) if error.filename is None and error.errno in _OF_OUTPUT else _refused(error)
    return result if isinstance(result, int) else 0


def _refused(error: OSError) -> int:
    """Print an error of the disk or system as one sentence, with the file's name if there is one."""
    what = error.strerror or str(error) or type(error).__name__
    hint = ": become a user who may, such as one of the recording's group" if isinstance(error, PermissionError) else ""
    _print_error(f"{what}{hint}" if error.filename is None else f"{error.filename}: {what}{hint}")
    return 1


def _print_error(text: str) -> None:
    """`error: …`, a line for each line of the text."""
    from ingestor.logs import redactor_in_force  # structlog would slow `--help` down

    redact = redactor_in_force()
    for line in text.splitlines():
        click.echo(f"error: {escape(redact(line))}", err=True)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001  as `warnings` calls it
    lineno: int,  # noqa: ARG001  the same
    file: TextIO | None = None,  # noqa: ARG001  the same
    line: str | None = None,  # noqa: ARG001  the same
) -> None:
    """`warning: …`, a line; what is not ours is told with its kind."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    click.echo(f"warning: {kind}{escape(str(message))}", err=True)
