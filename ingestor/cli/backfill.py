"""Commands that bring what no recorder heard (`ingestor.backfill`): `ingestor backfill` fills gaps from a source's
history, `ingestor audit` compares a day with it, `ingestor import` takes the trades of files.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingestor.backfill.sources import SOURCES, Source, make_source
from ingestor.cli import options
from ingestor.cli.printing import format_json, format_time, percent, wrap_text
from ingestor.config import DEFAULT_PATH, Settings, load_settings
from ingestor.config.feeds import BinanceSettings, find_history
from ingestor.config.key import load_key
from ingestor.dataset.arguments import find_zone
from ingestor.dataset.snapshot import open_recording
from ingestor.errors import ConfigError, RootLocked
from ingestor.history import read_history
from ingestor.layout import Layout, locked_root
from ingestor.logs import configure_logs
from ingestor.operations.backfill_process import load_source_secrets
from ingestor.schema import VENUE_TRADES
from ingestor.store import StorePath
from ingestor.texts import escape

if TYPE_CHECKING:
    from ingestor.backfill.audit import SymbolAudit
    from ingestor.backfill.fill import Outcome
    from ingestor.backfill.import_files import Import, Report, Unit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER_US = 1 << 62
_SHOWN = 20
_SPARE_OF_GAPS = ("compared", "source", "ours", "theirs", "end", "cause")
_SPARE_OF_FILES = ("rows", "symbols", "last", "recorded", "first")
_SPARE_OF_SYMBOLS = ("differ", "filled", "recorded", "source", "extra", "in_gaps")
"""Columns of either table from the one that is missed least."""
_Step = TypeVar("_Step")


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    """`name: str | None`, `url: str | None`."""
    command = click.option("--url", metavar="URL", help="Another address that serves the same, such as a mirror.")(
        command
    )
    return click.option(
        "--source", "name", type=click.Choice(SOURCES), help="Whose history.  [default: the venue's own]"
    )(command)


@click.command(
    epilog=options.example(
        "ingestor backfill --config kraken.yaml --dry-run",
        "ingestor backfill --root data --source alpaca --start 2026-11-20",
    )
)
@options.query_options
@options.wide_option
@click.option("--dry-run", is_flag=True, help="Ask and compare, and write nothing. Works beside a running recorder.")
@_source_options
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    metavar="SHARE",
    help="Fill nothing from a source that agrees less with what was recorded around a gap.",
)
def backfill(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
    dry_run: bool,
    name: str | None,
    url: str | None,
    min_agreement: float,
) -> None:
    """Fill the gaps that are over from the history that the venue, or another source, serves.

    First the trades recorded around a gap are compared with those of the source. Where they agree, what is missing goes
    through the journal to every destination, with the source as its `origin`, and coverage says `filled`. What can't be
    filled stays blind, and the ledger says why. A second call changes nothing; one that was killed is completed by the
    next.

    Stop the recorder first: one root has one writer. Prints a row per gap.
    """
    from ingestor.backfill.fill import Backfill

    configure_logs("warning", "auto", [])
    asked = options.read_span(start, end, tz)
    layout = Layout(options.root_from(config, root))
    settings = _read_settings(config, root)
    open_recording(layout.root)  # names what is no recording before anything is locked
    source = _find_source(layout, settings, config, name, url)
    bounds = [
        usual if at is None else (at - _EPOCH) // timedelta(microseconds=1)
        for at, usual in ((asked.start, 0), (asked.end, _FOREVER_US))
    ]
    with contextlib.nullcontext() if dry_run else _hold(layout):
        work = Backfill(layout, source, min_agreement=min_agreement, dry_run=dry_run)
        holes = work.find_holes(symbols, *bounds)
        outcomes = list(_shown(work.fill(holes), len(holes)))
    options.warn_of_unknown_symbols([layout.root], symbols, [hole.symbol for hole in holes])
    rows = [_as_row(one, source.name, tz, dry_run=dry_run) for one in outcomes]
    if as_json:
        filled = sum(one.rows for one in outcomes)
        click.echo(format_json({"source": source.name, "trades": filled, "dry_run": dry_run, "gaps": rows}))
    elif not rows:
        click.echo("No gap is left to fill.")
    else:
        texts = [
            {**row, "ours": percent(row["ours"]), "theirs": percent(row["theirs"])}
            | ({"result": "not filled"} if one.why else {})
            for row, one in zip(rows, outcomes, strict=True)
        ]
        options.print_table([*texts[0]], [[*row.values()] for row in texts], _SPARE_OF_GAPS, wide=wide)
        for row, one in zip(rows, outcomes, strict=True):
            if one.why:
                click.echo(wrap_text("", escape(f"{row['symbol']}, {row['start']}: {one.why}")))


@click.command(epilog=options.example("ingestor audit --config kraken.yaml --day yesterday"))
@options.reading_options
@options.tz_option
@options.json_option
@options.wide_option
@click.option("--day", required=True, metavar="DATE", help="A UTC date: 2026-11-20, today or yesterday.")
@_source_options
def audit(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
    day: str,
    name: str | None,
    url: str | None,
) -> None:
    """Compare a whole day of a recording with the history that the venue, or another source, serves, gap or none.

    Prints a row per symbol: trades that are recorded, that the source has, that are missing (and how many of these
    coverage tells of), and that the recording has and the source hasn't. Trades are compared by time, price and volume,
    and by id where the venue counts them. It writes nothing, and works beside a running recorder. Exit 0 where all that
    is missing is told by coverage, 1 where something else differs, or nothing could be compared.
    """
    from ingestor.backfill.audit import Audit

    configure_logs("warning", "auto", [])
    layout = Layout(options.root_from(config, root))
    settings = _read_settings(config, root)
    open_recording(layout.root)
    source = _find_source(layout, settings, config, name, url)
    work = Audit(layout, source, options.parse_time(day, UTC, "--day").date(), symbols)
    options.warn_of_unknown_symbols([layout.root], symbols, work.symbols)
    found = list(_shown(work.run(), len(work.symbols)))
    rows = [_as_audited(one) for one in found]
    if as_json:
        named = [{**row, "unmatched": _name_unmatched(one, tz)} for row, one in zip(rows, found, strict=True)]
        click.echo(format_json({"source": source.name, "day": day, "symbols": named}))
    elif not rows:
        click.echo(f"Nothing was asked for on {day}.")
    else:
        texts = [
            {**row, "complete": percent(row["complete"])} | ({"result": "failed"} if one.why else {})
            for row, one in zip(rows, found, strict=True)
        ]
        options.print_table([*texts[0]], [[*row.values()] for row in texts], _SPARE_OF_SYMBOLS, wide=wide)
        for reason in dict.fromkeys(one.why for one in found if one.why):
            click.echo(wrap_text("", escape(reason)))
        unmatched = [one for audited in found for one in _name_unmatched(audited, tz) if not one["in_gap"]]
        if unmatched:
            click.echo("\nWhat no gap explains:")
            table = [[*one.values()][:-1] for one in unmatched[:_SHOWN]]
            options.print_table([*unmatched[0]][:-1], table, ("id", "volume"), wide=wide)
            if len(unmatched) > _SHOWN:
                click.echo(f"… and {len(unmatched) - _SHOWN:,} more: --json names 1,000 of each symbol")
    sys.exit(0 if all(one.clean for one in found) else 1)


def _split_columns(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, str]:
    """`price=px,timestamp=ts` → the file's name of each column."""
    pairs = [one.partition("=") for one in (text or "").split(",") if text]
    for ours, _, theirs in pairs:
        if ours not in VENUE_TRADES.names or not theirs:
            raise click.BadParameter(f"write NAME=COLUMN,…, where NAME is one of {', '.join(VENUE_TRADES.names)}")
    return {ours: theirs for ours, _, theirs in pairs}


def _check_zone(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    try:
        find_zone(name or "UTC")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return name


def _check_delimiter(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if len(text) != 1 or not text.isascii() or text in '"\r\n':
        raise click.BadParameter("must be one ASCII character, and no quote")
    return text


@click.command(
    "import",
    epilog=options.example(
        "ingestor import aapl.csv --symbol AAPL --columns price=px --time-unit ms",
        "ingestor import *.parquet --time-zone America/New_York --dry-run",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.recording_options
@options.wide_option
@options.json_option
@click.option(
    "--columns",
    metavar="NAME=COLUMN,…",
    callback=_split_columns,
    help="The files' names of timestamp, symbol, price, volume and conditions, where they are others.",
)
@click.option("--symbol", metavar="SYMBOL", help="The symbol of all trades, where no column has it.")
@click.option(
    "--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Of times that are numbers since 1970 (UTC)."
)
@click.option("--time-zone", "zone", metavar="ZONE", callback=_check_zone, help="Time zone of times that name none.")
@click.option(
    "--delimiter", metavar="CHARACTER", default=",", show_default=True, callback=_check_delimiter, help="Of CSV."
)
@click.option("--no-header", is_flag=True, help="CSV without a heading: its columns are f0, f1, …")
@click.option("--skip-bad", is_flag=True, help="Import a file without the rows that can't be.")
@click.option("--dry-run", is_flag=True, help="Read and compare, and write nothing. Works beside a running recorder.")
def import_(
    files: tuple[Path, ...],
    config: Path | None,
    root: Path | None,
    wide: bool,
    as_json: bool,
    columns: dict[str, str],
    symbol: str | None,
    time_unit: "Unit | None",
    zone: str | None,
    delimiter: str,
    no_header: bool,
    skip_bad: bool,
    dry_run: bool,
) -> None:
    """Import trades from CSV and Parquet files into a recording, or into a new one.

    They go through the journal to every destination, with the file as their `origin`, and coverage says `imported`:
    never `recorded`, since nobody heard them. Trades of times that are recorded are left out, and so are those that the
    recording has already; so a second call adds nothing, and one that was killed is completed by the next.

    A row that can't be imported is named, and then nothing of its file is imported, unless --skip-bad. Stop the
    recorder first: one root has one writer. Prints a row per file.
    """
    from ingestor.backfill.import_files import Import, Terms

    configure_logs("warning", "auto", [])
    layout = Layout(options.root_from(config, root))
    if isinstance(layout.root, StorePath):
        raise ConfigError(f"{layout.root} is a copy, which is only read: import into the root that it was made of")
    if symbol is not None and "symbol" in columns:
        raise click.UsageError("--symbol and a column for it: give one of them")
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
    if not dry_run:
        layout.create()
    terms = Terms(columns, symbol, time_unit, zone, delimiter, not no_header)
    with contextlib.nullcontext() if dry_run else _hold(layout):
        work = Import(layout, terms, skip_bad=skip_bad, dry_run=dry_run)
        try:
            for path in files:
                _import_file(work, path)
        finally:  # of those before one that is refused, too
            if as_json:
                faults = [[fault._asdict() for fault in one.faults] for one in work.reports]
                told = [{**_as_imported(one), "faults": own} for one, own in zip(work.reports, faults, strict=True)]
                click.echo(format_json({"dry_run": dry_run, "files": told}))
            else:
                _print_imported(work.reports, name_faults=skip_bad, wide=wide)


def _print_imported(reports: "list[Report]", *, name_faults: bool, wide: bool) -> None:
    rows = [_as_imported(one) for one in reports]
    if rows:
        options.print_table([*rows[0]], [[*row.values()] for row in rows], _SPARE_OF_FILES, wide=wide)
    for one in reports if name_faults else ():
        for fault in one.faults[:_SHOWN]:
            click.echo(escape(f"{one.file}, {fault}"), err=True)
        if one.bad > _SHOWN:
            click.echo(escape(f"{one.file}: … and {one.bad - _SHOWN:,} more: --json names 1,000"), err=True)


def _import_file(work: "Import", path: Path) -> None:
    """One file; on a terminal with a bar."""
    if not sys.stderr.isatty():
        work.take(path, lambda _: None)
        return
    with click.progressbar(length=1000, label=escape(path.name), file=sys.stderr) as shown:
        work.take(path, lambda share: shown.update(int(share * 1000) - shown.pos))


def _as_imported(one: "Report") -> dict[str, Any]:
    first, last = min(one.starts.values(), default=None), max(one.ends.values(), default=None)
    return {
        "file": one.file,
        "rows": one.rows,
        "imported": one.imported,
        "there": one.there,
        "recorded": one.recorded,
        "bad": one.bad,
        "symbols": len(one.starts),
        "first": first and format_time(_EPOCH + timedelta(microseconds=first)),
        "last": last and format_time(_EPOCH + timedelta(microseconds=last - 1000)),
    }


def _as_audited(one: "SymbolAudit") -> dict[str, Any]:
    result = one.why or ("complete" if not one.missing else "as told") if one.clean or one.why else "differs"
    return {
        "symbol": one.symbol,
        "recorded": one.recorded,
        "filled": one.filled,
        "source": one.source,
        "missing": one.missing,
        "in_gaps": one.in_gaps,
        "extra": one.extra,
        "differ": one.differ,
        "complete": one.complete,
        "result": result,
    }


def _name_unmatched(one: "SymbolAudit", tz: tzinfo) -> list[dict[str, Any]]:
    return [
        {
            "symbol": one.symbol,
            "kind": trade.kind,
            "time": format_time(_EPOCH + timedelta(milliseconds=trade.time_ms), tz),
            "price": trade.price,
            "volume": trade.volume,
            "id": trade.id,
            "in_gap": trade.in_gap,
        }
        for trade in one.unmatched
    ]


@contextlib.contextmanager
def _hold(layout: Layout) -> Iterator[None]:
    """The root, as its one writer."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_root(layout))
        except RootLocked as error:
            raise RootLocked(f"{error}; --dry-run only looks, and works beside it") from None
        yield


def _shown(steps: Iterator[_Step], length: int) -> Iterator[_Step]:
    """These; on a terminal with a bar."""
    if not sys.stderr.isatty():
        yield from steps
        return
    with click.progressbar(steps, length=length, file=sys.stderr) as shown:
        yield from shown


def _as_row(one: "Outcome", source: str, tz: tzinfo, *, dry_run: bool) -> dict[str, Any]:
    start, end = (
        format_time(_EPOCH + timedelta(microseconds=at_us), tz) for at_us in (one.hole.start_us, one.hole.end_us)
    )
    return {
        "symbol": one.hole.symbol,
        "start": start,
        "end": end,
        "cause": one.hole.cause,
        "source": source,
        "compared": one.compared,
        "ours": one.agreement[0] if one.agreement else None,
        "theirs": one.agreement[1] if one.agreement else None,
        "trades": one.rows,
        "result": one.why or ("could be filled" if dry_run else "filled"),
    }


def _read_settings(config: Path | None, root: Path | None) -> Settings | None:
    """None where the root alone is named, and there are none."""
    if config is None and (root is not None or not DEFAULT_PATH.exists()):
        return None
    return load_settings(config or DEFAULT_PATH)


def _find_source(
    layout: Layout, settings: Settings | None, config: Path | None, name: str | None, url: str | None
) -> Source:
    """The source that is named, else the venue's own. Raises ConfigError."""
    history = read_history(layout)
    if name is None:
        stream = settings.feed.stream if settings and isinstance(settings.feed, BinanceSettings) else ""
        name = find_history(history.feed or "", history.venue or "", stream)
    if name not in SOURCES:
        raise ConfigError(f"no history of {history.venue or history.feed} is known: name one with --source")
    key = None
    if name == "finnhub":
        key = load_key(options.config_dir(config))
        if key is None:
            raise ConfigError("Finnhub's history needs the key: FINNHUB_API_KEY, or .env beside the settings")
    secrets = load_source_secrets(name, options.config_dir(config))
    connection = settings.connection if settings else None
    return make_source(name, url, key.value.get_secret_value() if key else "", secrets, connection)
