"""The flags that several commands share, each written once, and the two ways in which commands print."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from ingestor.config import DEFAULT_PATH, Flags, Settings, Source, StorageSettings, load_settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Span(NamedTuple):
    """A half-open interval of time: `start` is in it, `end` isn't. None is open. Both aware, in UTC."""

    start: datetime | None
    end: datetime | None


# Flags


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


def config_option(command: _Command) -> _Command:
    """`config: Path | None`; None where the flag wasn't given."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"The settings.  [default: {DEFAULT_PATH}]",
    )(command)


def root_option(command: _Command) -> _Command:
    """`root: Path | None`."""
    return click.option(
        "--root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The recording; stands above storage.root of the settings.",
    )(command)


def symbols_option(command: _Command) -> _Command:
    """`symbols: tuple[str, ...] | None`."""
    return click.option(
        "--symbols", metavar="A,B", callback=_split_symbols, help="These symbols, separated by commas."
    )(command)


def json_option(command: _Command) -> _Command:
    """`as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def span_options(command: _Command) -> _Command:
    """`start: str | None`, `end: str | None`, `tz: tzinfo`: for `read_span`."""
    for option in (
        click.option(
            "--tz",
            metavar="ZONE",
            callback=_find_zone,
            default="UTC",
            show_default=True,
            help="Zone of times that name none.",
        ),
        click.option("--end", metavar="TIME", help="Up to but without this time."),
        click.option("--start", metavar="TIME", help="From this time; a bare date is its midnight."),
    ):
        command = option(command)
    return command


def read_span(start: str | None, end: str | None, tz: tzinfo) -> Span:
    """The interval that the flags name. Raises click.BadParameter."""
    span = Span(
        None if start is None else parse_time(start, tz, "--start"),
        None if end is None else parse_time(end, tz, "--end"),
    )
    if span.start and span.end and span.start >= span.end:
        raise click.BadParameter("must be before --end", param_hint="--start")
    return span


def parse_time(text: str, tz: tzinfo, flag: str) -> datetime:
    """`2026-11-20`, `2026-11-20T14:30` or `2026-11-20T14:30:05.250Z`, in UTC; `tz` where it names no zone."""
    try:
        found = datetime.fromisoformat(text.strip())
        local = found if found.tzinfo else datetime.combine(found.date(), found.time(), tz)
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time: write 2026-11-20, 2026-11-20T14:30 or 2026-11-20T14:30:00Z",
            param_hint=flag,
        ) from None


# Settings


def source_from(config: Path | None, flags: Flags) -> Source:
    """Where the settings under these flags come from; `--symbols` needs no file."""
    needs_none = config is None and flags.symbols and not DEFAULT_PATH.exists()
    return Source(None if needs_none else config or DEFAULT_PATH, flags)


def settings_from(config: Path | None, flags: Flags) -> Settings:
    """The settings under these flags. Raises ConfigError."""
    return source_from(config, flags).read()


def root_from(config: Path | None, root: Path | None) -> Path:
    """The recording to read: `--root`, else that of the settings, else the default. Raises ConfigError."""
    if root is not None:
        return root
    if config is None and not DEFAULT_PATH.exists():
        return StorageSettings().root
    return load_settings(config or DEFAULT_PATH).storage.root


def config_dir(config: Path | None) -> Path:
    """The directory whose `.env` may hold the key."""
    return (config or DEFAULT_PATH).parent


# Printing


def format_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned plain text: columns of numbers to the right, all else to the left; None is an empty cell."""
    cells = [list(row) for row in rows]
    numeric = [all(_is_number(row[at]) for row in cells) and bool(cells) for at in range(len(columns))]
    lines = [list(columns), *([_cell(value) for value in row] for row in cells)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def format_json(value: object, indent: int | None = 2) -> str:
    """JSON as UTF-8 text; times as ISO 8601, whatever else JSON doesn't know as its text."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_as_json)


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
