"""The flags that several commands share, each written once.

What reads settings is imported where it is needed: a command that is told the root is done before that is loaded.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import click

from ingestor.cli.printing import fit_table
from ingestor.dataset import arguments
from ingestor.errors import ConfigError, IngestorError
from ingestor.texts import parse_duration

if TYPE_CHECKING:
    from ingestor.config import Flags, Settings, Source
_WIDTH = 80
_NAMED = 5
_Command = TypeVar("_Command", bound=Callable[..., Any])


class TimeRange(NamedTuple):
    """A half-open interval of time: `start` is in it, `end` isn't. None is open. Both aware, in UTC."""

    start: datetime | None
    end: datetime | None


class DurationType(click.ParamType[float]):
    """`250ms` → 0.25. Nothing that a flag says may last no time at all."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds == 0:
            self.fail("must be above 0", param, ctx)
        return seconds


def example(*lines: str) -> str:
    """The end of a command's `--help`: what to type."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


# Flags


_ROOT_HELP = "Directory of the recording, or s3://bucket/path to read a copy. Overrides storage.root."


def _split_symbols(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`AAPL, BINANCE:BTCUSDT` → two symbols. Blanks around a comma don't count."""
    if text is None:
        return None
    symbols = tuple(symbol.strip() for symbol in text.split(","))
    if "" in symbols:
        raise click.BadParameter("a symbol is empty: write A,B")
    return symbols


def _find_zone(_ctx: click.Context, _param: click.Parameter, name: str) -> tzinfo:
    """`America/New_York` → its time zone."""
    if name == "UTC":
        return UTC  # needs no time zone database
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise click.BadParameter(f"no time zone {name!r} here: write it like America/New_York") from None


def _complete_symbols(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The last of the symbols that have been typed, by those of the recording that is named so far; none where there is
    no recording to read.
    """
    from ingestor.dataset.coverage import known_symbols
    from ingestor.layout import Layout

    typed, comma, last = incomplete.rpartition(",")
    roots = ctx.params.get("roots") or (ctx.params.get("root"),)
    try:
        known = known_symbols(Layout(root_from(ctx.params.get("config"), roots[0])))
    except (IngestorError, OSError):
        return []
    return [f"{typed}{comma}{name}" for name in sorted(known) if name.startswith(last)]


def config_option(command: _Command) -> _Command:
    """`config: Path | None`; None where the flag wasn't given."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The settings.  [default: config/ingestor.yaml]",
    )(command)


def root_option(command: _Command) -> _Command:
    """`root: Path | None`."""
    return click.option(
        "--root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=_ROOT_HELP,
    )(command)


def roots_option(command: _Command) -> _Command:
    """`roots: tuple[Path, ...]`: each with its --root."""
    return click.option(
        "--root",
        "roots",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="DIR",
        help=_ROOT_HELP,
    )(command)


def symbols_option(command: _Command) -> _Command:
    """`symbols: tuple[str, ...] | None`."""
    return click.option(
        "--symbols",
        metavar="A,B",
        callback=_split_symbols,
        shell_complete=_complete_symbols,
        help="These symbols, separated by commas.",
    )(command)


def recording_options(command: _Command) -> _Command:
    """`config: Path | None`, `root: Path | None`."""
    return config_option(root_option(command))


def reading_options(command: _Command) -> _Command:
    """`config: Path | None`, `root: Path | None`, `symbols: tuple[str, ...] | None`."""
    return config_option(root_option(symbols_option(command)))


def json_option(command: _Command) -> _Command:
    """`as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def wide_option(command: _Command) -> _Command:
    """`wide: bool`, for `print_table`."""
    return click.option("--wide", is_flag=True, help="All columns, however wide that is.")(command)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], spare: Sequence[str], *, wide: bool) -> None:
    """Print a table within 80 columns, or as many as the terminal has; stderr says which columns that leaves out."""
    width = max(shutil.get_terminal_size().columns, _WIDTH) if sys.stdout.isatty() else _WIDTH
    text, left_out = fit_table(columns, rows, spare, None if wide else width)
    click.echo(text)
    if left_out:
        named = ", ".join(left_out[:_NAMED]) + (", …" if len(left_out) > _NAMED else "")
        click.echo(f"more with --wide: {named}", err=True)


def tz_option(command: _Command) -> _Command:
    """`tz: tzinfo`."""
    return click.option(
        "--tz",
        metavar="ZONE",
        callback=_find_zone,
        shell_complete=lambda _ctx, _param, incomplete: sorted(
            name for name in available_timezones() if name.lower().startswith(incomplete.lower())
        ),
        default="UTC",
        show_default=True,
        help="Time zone for input and output.",
    )(command)


def query_options(command: _Command) -> _Command:
    """`config`, `root`, `symbols`, `start`, `end`, `tz`, `as_json`: what is asked of a recording, for `read_span`."""
    return reading_options(span_options(json_option(command)))


def merging_options(command: _Command) -> _Command:
    """`config`, `roots`, `symbols`: for what reads several recordings as one."""
    return config_option(roots_option(symbols_option(command)))


def listen_options(port: int, where: str = "Address to listen on.") -> Callable[[_Command], _Command]:
    """`host: str`, `port: int`."""

    def add(command: _Command) -> _Command:
        command = click.option(
            "--port",
            type=click.IntRange(0, 65535),
            metavar="PORT",
            default=port,
            show_default=True,
            help="0 takes a free one.",
        )(command)
        return click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help=where)(command)

    return add


def span_options(command: _Command) -> _Command:
    """`start: str | None`, `end: str | None`, `tz: tzinfo`: for `read_span`."""
    for option in (
        tz_option,
        click.option("--end", metavar="TIME", help="Until this time (exclusive); written like --start."),
        click.option(
            "--start",
            metavar="TIME",
            help="From this time: 2026-11-20, 2026-11-20T15:30, 15:30, today, yesterday or -1h. UTC unless --tz says"
            " otherwise.",
        ),
    ):
        command = option(command)
    return command


def read_span(start: str | None, end: str | None, tz: tzinfo) -> TimeRange:
    """The interval that the flags name. Raises click.BadParameter."""
    span = TimeRange(
        None if start is None else parse_time(start, tz, "--start"),
        None if end is None else parse_time(end, tz, "--end"),
    )
    if span.start and span.end and span.start >= span.end:
        raise click.BadParameter("must be before --end", param_hint="--start")
    return span


def parse_time(text: str, tz: tzinfo, flag: str) -> datetime:
    """As `dataset.arguments.parse_time` reads it, in UTC; `tz` where it names no zone. Raises click.BadParameter."""
    try:
        return arguments.parse_time(text, tz, datetime.now(UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param_hint=flag) from None


# Settings


def source_from(config: Path | None, flags: "Flags") -> "Source":
    """Source of the settings under these flags; `--symbols` needs no file."""
    from ingestor.config import DEFAULT_PATH, Source

    needs_none = config is None and flags.symbols and not DEFAULT_PATH.exists()
    return Source(None if needs_none else config or DEFAULT_PATH, flags)


def settings_from(config: Path | None, flags: "Flags") -> "Settings":
    """The settings under these flags. Raises ConfigError."""
    return source_from(config, flags).read()


def roots_from(config: Path | None, roots: Sequence[Path]) -> list[Path]:
    """The recordings to read: each `--root`, else as `root_from`. Raises ConfigError."""
    return [root_from(config, root) for root in roots] or [root_from(config, None)]


def root_from(config: Path | None, root: Path | None) -> Path:
    """The recording to read: `--root`, else that of the settings, else the default. Raises ConfigError."""
    if root is not None:
        from ingestor.store import locate_root

        return locate_root(root)
    from ingestor.config import DEFAULT_PATH, load_settings
    from ingestor.config.sections import StorageSettings

    if config is None and not DEFAULT_PATH.exists():
        return StorageSettings().root
    return load_settings(config or DEFAULT_PATH).storage.root


def warn_of_unknown_symbols(roots: Sequence[Path], symbols: tuple[str, ...] | None, found: Iterable[str] = ()) -> None:
    """Name on stderr the symbols that are not recorded; of those in `found` it is known."""
    if not set(symbols or ()) - set(found):
        return
    from ingestor.dataset.coverage import warn_of_unknown
    from ingestor.layout import Layout

    warn_of_unknown([Layout(root) for root in roots], symbols, found)


def warn_of_nothing(root: Path, symbols: tuple[str, ...] | None, tz: tzinfo) -> None:
    """Say on stderr why there is nothing to print: the time that is recorded."""
    from ingestor.dataset.coverage import explain_nothing

    if reason := explain_nothing(root, symbols, tz):
        click.echo(reason, err=True)


def config_dir(config: Path | None) -> Path:
    """The directory whose `.env` may hold the key."""
    from ingestor.config import DEFAULT_PATH

    return (config or DEFAULT_PATH).parent


def require_extra(extra: str, *modules: str) -> None:
    """Raises ConfigError with what to install, where one of these modules is missing."""
    for module in modules:
        if find_spec(module) is None:
            raise ConfigError(f"{module} is not installed: pip install 'finnhub-ingestor[{extra}]'")
