"""Commands that read a recording: `ingestor head`, `tail`, `bars`, `describe`, `export` and `coverage`."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ingestor.accounts import read_ids
from ingestor.cli import options, printing
from ingestor.coverage import Coverage, Gap, Interval, blind_by_cause, clip, state_at, sum_proved, sum_shares
from ingestor.dataset.arguments import Span
from ingestor.dataset.coverage import CoverageWatch, load_merged_coverage, warn_of_unknown
from ingestor.layout import Layout, read_holder
from ingestor.ledger import list_ledgers
from ingestor.texts import describe_blindness, escape
from ingestor.trade_ids import format_missing

if TYPE_CHECKING:
    from ingestor.dataset.backtest import Backtester

_HEAD = ("timestamp", "symbol", "price", "volume", "conditions")
_SPARE = (
    "delay_min_ms", "delay_p90_ms", "delay_max_ms", "delay_p50_ms", "ids", "bytes", "filled %", "imported %",
    "delay_p99_ms", "first", "late %", "missing", "gaps", "unproven %", "last",
)  # fmt: skip
"""Columns of `describe`, from the one that is missed least."""
_SHARES = ("recorded", "blind", "unproven", "filled", "imported", "late")
_Kind = Literal["csv", "parquet", "jsonl", "sqlite"]
_ENDINGS: dict[str, _Kind] = {
    ".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".sqlite": "sqlite", ".db": "sqlite",
}  # fmt: skip
_PROGRESS_S = 0.2
_NOTES_S = 2.0
_NAMED = 5


@click.command(epilog=options.example("ingestor head --symbols AAPL --start 2026-11-20T09:30 --tz America/New_York"))
@options.merging_options
@options.span_options
@options.json_option
@options.wide_option
@click.option(
    "-n", "--count", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="How many trades."
)
def head(
    config: Path | None,
    roots: tuple[Path, ...],
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
    count: int,
) -> None:
    """Print the first trades of a span, a row each, in order of time; --json has all their columns.

    Several --root are read as one: what several recorders of one venue have.
    """
    from ingestor.dataset.arguments import to_span
    from ingestor.dataset.trades import first_trades

    found = first_trades(options.roots_from(config, roots), to_span(options.read_span(start, end, tz)), symbols, count)
    if not found.num_rows:
        for root in options.roots_from(config, roots):
            options.warn_of_nothing(root, symbols, tz)
    rows = [printing.format_trade(row, tz) for row in found.to_pylist()]
    if as_json:
        click.echo(printing.format_json(rows))
    else:
        shown = ([row[name] for name in _HEAD] for row in rows)
        options.print_table(_HEAD, shown, ("conditions", "volume"), wide=wide)


@click.command(
    epilog=options.example(
        "ingestor tail --symbols AAPL",
        "14:30:00.123  AAPL                       189.45           100  1,12",
    )
)
@options.reading_options
@options.tz_option
@options.json_option
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N trades.")
def tail(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    tz: tzinfo,
    as_json: bool,
    count: int | None,
) -> None:
    """Print each trade as it is recorded, a line each, until Ctrl-C. Does not slow down the recorder.

    Time, symbol, price, volume, conditions, and whether its frame repeats the one before; --json has all columns.
    Where no trades can come it says so on stderr: no recorder runs, or it is blind.
    """
    from ingestor.dataset.trades import follow

    left = count
    place = options.root_from(config, root)
    notes = TailNotes(Layout(place), symbols)
    looked_s = float("-inf")
    try:
        for batch in follow(place, symbols, idle_s=_NOTES_S / 2):
            if time.monotonic() - looked_s >= _NOTES_S:
                looked_s = time.monotonic()
                for note in notes.look():
                    click.echo(f"{datetime.now(tz):%H:%M:%S}  {escape(note)}", err=True)
            rows = batch.to_pylist()[:left]
            sys.stdout.write("".join(_format_line(row, tz, as_json=as_json) for row in rows))
            sys.stdout.flush()
            left = None if left is None else left - len(rows)
            if left == 0:
                return
    except BrokenPipeError:  # `ingestor tail | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TailNotes:
    """Why no trades come, each time that it changes."""

    def __init__(self, layout: Layout, symbols: tuple[str, ...] | None) -> None:
        self._layout = layout
        self._only = symbols
        self._watch = CoverageWatch(layout)
        self._recording = True
        self._seen: Coverage | None = None
        self._blind: dict[str, str] = {}

    def look(self) -> Iterator[str]:
        """What is new. Raises OSError where the root can't be looked at."""
        recording = read_holder(self._layout) is not None
        if recording != self._recording:
            yield "a recorder runs again" if recording else f"no recorder runs on {self._layout.root}: waiting for one"
            self._recording = recording
        if not recording or not list_ledgers(self._layout):
            return
        coverage = self._watch.look()
        if coverage is self._seen:
            return
        self._seen = coverage
        now_us = time.time_ns() // 1000
        known = coverage.symbols
        found = {one: state_at(coverage.intervals(one), now_us) for one in known if not self._only or one in self._only}
        blind = {one: describe_blindness(held.cause) for one, held in found.items() if held and held.state == "blind"}
        for words in sorted(set(blind.values())):
            named = [one for one, held in blind.items() if held == words]
            if any(self._blind.get(one) != words for one in named):
                more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
                yield f"{words}: {'all symbols' if len(named) == len(found) else ', '.join(named[:_NAMED]) + more}"
        if self._blind and not blind:
            yield "no longer blind"
        self._blind = blind


def _format_line(row: dict[str, Any], tz: tzinfo, *, as_json: bool) -> str:
    if as_json:
        return printing.format_json(printing.format_trade(row, tz), indent=None) + "\n"
    price = printing.format_number(row["price"])
    volume = "" if row["volume"] is None else printing.format_number(row["volume"])
    again = "  repeated" if row["repeated"] else ""
    at = f"{row['timestamp'].astimezone(tz):%H:%M:%S.%f}"[:-3]
    line = f"{at}  {escape(row['symbol']):<18} {price:>14}  {volume:>12}  {escape(row['conditions'] or '')}{again}"
    return f"{line.rstrip()}\n"


@click.command(
    epilog=options.example(
        "ingestor bars 5m --symbols AAPL --start 2026-11-20 --session regular",
    )
)
@click.argument("interval", metavar="INTERVAL")
@options.merging_options
@options.span_options
@options.json_option
@options.wide_option
@click.option(
    "--session",
    type=click.Choice(["all", "regular", "extended", "overnight"]),
    default="all",
    show_default=True,
    help="Hours of US stocks: regular is 09:30 to 16:00 New York, extended 04:00 to 20:00, overnight 20:00 to 04:00.",
)
@click.option(
    "--conditions",
    type=click.Choice(["sip", "all"]),
    default="sip",
    show_default=True,
    help="sip: the US rules on which prints move what. all: every print moves everything.",
)
@click.option("--fill", is_flag=True, help="Add the bars that were recorded and had no trade.")
def bars(
    interval: str,
    config: Path | None,
    roots: tuple[Path, ...],
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
    session: Literal["all", "regular", "extended", "overnight"],
    conditions: Literal["sip", "all"],
    fill: bool,
) -> None:
    """Print bars of INTERVAL (1s, 1m, 5m, 1h, 1d), each with the share of it that was recorded.

    A bar is named by its start. Without a trade there is no bar: --fill adds those that were recorded whole.

    Several --root are read as one: what several recorders of one venue have.
    """
    from ingestor.dataset.bars import read_bars

    span = options.read_span(start, end, tz)
    try:
        table = read_bars(
            options.roots_from(config, roots), interval, symbols, span.start, span.end, str(tz),
            session=session, conditions=conditions, fill=fill, engine="arrow",
        )  # fmt: skip
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="INTERVAL") from None
    if not table.num_rows:
        for root in options.roots_from(config, roots):
            options.warn_of_nothing(root, symbols, tz)
    rows = [row | {"start": printing.format_time(row["start"], timespec="seconds")} for row in table.to_pylist()]
    if as_json:
        click.echo(printing.format_json(rows))
        return
    heading = ["coverage %" if name == "coverage" else name for name in table.column_names]
    shown = (
        # Ten digits tell any price, and are short to read.
        {name: float(f"{value:.10g}") if isinstance(value, float) else value for name, value in row.items()}
        | {"coverage": printing.percent(row["coverage"])}
        for row in rows
    )
    spare = ("vwap", "recorded %", "trades", "volume", "open", "low", "high")
    options.print_table(heading, ([*row.values()] for row in shown), spare, wide=wide)


@click.command(epilog=options.example("ingestor describe --symbols AAPL"))
@options.merging_options
@options.span_options
@options.json_option
@options.wide_option
def describe(
    config: Path | None,
    roots: tuple[Path, ...],
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
) -> None:
    """Print a row per symbol: first and last trade, how many, how well covered, how late they came.

    Late is what came more than a minute after its time; delays are from the trade to its receipt.

    Several --root are read as one: what several recorders of one venue have.
    """
    from ingestor.dataset.describe import describe as describe_root

    span = options.read_span(start, end, tz)
    table = describe_root(
        options.roots_from(config, roots), symbols, str(tz), start=span.start, end=span.end, engine="arrow"
    )
    rows = [
        row | {name: row[name] and printing.format_time(row[name]) for name in ("first", "last")}
        for row in table.to_pylist()
    ]
    if as_json:
        click.echo(printing.format_json(rows))
        return
    heading = [f"{name} %" if name in _SHARES else name for name in table.column_names]
    shown = (row | {name: printing.percent(row[name]) for name in _SHARES} for row in rows)
    options.print_table(heading, ([*row.values()] for row in shown), _SPARE, wide=wide)


@click.command(epilog=options.example("ingestor export aapl.csv --symbols AAPL --start 2026-11-20 --end 2026-11-21"))
@click.argument("file", type=click.Path(path_type=Path))
@options.merging_options
@options.span_options
@options.json_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet", "jsonl", "sqlite", "hftbacktest", "nautilus"]),
    help="What to write.  [default: what FILE ends in]",
)
@click.option(
    "--instrument-venue",
    metavar="NAME",
    help="In the ids of nautilus's instruments: XNAS for AAPL.XNAS.  [default: the venue that was recorded]",
)
def export(
    file: Path,
    config: Path | None,
    roots: tuple[Path, ...],
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    kind: "_Kind | Backtester | None",
    instrument_venue: str | None,
) -> None:
    """Write trades to FILE: CSV, Parquet, JSON Lines, or a SQLite database with a table `trades`.

    hftbacktest and nautilus make a folder for that backtester, with files of unbroken stretches of recorded time only.

    Any size in bounded memory. UTC date by date, within a date by symbol and time; times are in UTC. FILE must not
    exist, and has its name only once it is whole. Prints how many trades went into it.

    Several --root are read as one: what several recorders of one venue have.
    """
    from ingestor.dataset.arguments import to_span

    chosen = kind or _ENDINGS.get(file.suffix.lower())
    if chosen is None:
        raise click.BadParameter(
            "say what to write: --format csv, parquet, jsonl, sqlite, hftbacktest or nautilus", param_hint="FILE"
        )
    span = to_span(options.read_span(start, end, tz))
    rows, shown_s, found = 0, 0.0, options.roots_from(config, roots)
    if chosen == "hftbacktest" or chosen == "nautilus":  # noqa: PLR1714  which tells mypy the kind
        from ingestor.dataset.backtest import export_stretches

        steps = export_stretches(found, file, chosen, span, symbols, instrument_venue)
    else:
        from ingestor.dataset.export import export_trades

        steps = export_trades(found, file, chosen, span, symbols)
    for progress in steps:
        rows = progress.rows
        if sys.stderr.isatty() and time.monotonic() - shown_s >= _PROGRESS_S:
            shown_s = time.monotonic()
            click.echo(f"\r\x1b[2K{progress.day}  {rows:,} trades", err=True, nl=False)
    if shown_s:
        click.echo("\r\x1b[2K", err=True, nl=False)
    if not rows:
        options.warn_of_unknown_symbols(options.roots_from(config, roots), symbols)
        for root in options.roots_from(config, roots):
            options.warn_of_nothing(root, symbols, tz)
    size = sum(one.stat().st_size for one in [file, *file.rglob("*")] if one.is_file())
    if as_json:
        click.echo(printing.format_json({"file": str(file), "format": chosen, "trades": rows, "bytes": size}))
    else:
        click.echo(f"{file}: {rows:,} trades, {printing.format_bytes(size)}")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER_US = 1 << 62


@click.command(epilog=options.example("ingestor coverage --symbols AAPL --start 2026-11-20 --tz America/New_York"))
@options.merging_options
@options.span_options
@options.json_option
@options.wide_option
def coverage(
    config: Path | None,
    roots: tuple[Path, ...],
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
) -> None:
    """Show when each symbol was recorded, when not and why, and when nobody can tell.

    Recorded: a trade would have been kept. Blind: it would not, for the cause named. Unproven: asked for, and no
    trade came on that connection yet, so that silence may be the market or a subscription that doesn't work. Filled: it
    was one of these, and `ingestor backfill` has got its trades from a source's history.

    Where the venue counts its trades, ids prove more: how much of the time nothing can be missing, and how many ids
    never came (of the segments that are finished; not told of several recordings, which may have each other's).

    Prints a row per symbol, a row per gap, and the time blind by cause; --json has each interval, too.

    Several --root are read as one: what several recorders of one venue have.
    """
    asked = options.read_span(start, end, tz)
    start_us = 0 if asked.start is None else (asked.start - _EPOCH) // timedelta(microseconds=1)
    end_us = _FOREVER_US if asked.end is None else (asked.end - _EPOCH) // timedelta(microseconds=1)
    bounds = start_us, end_us
    span = Span(start_us // 1000 if start else None, -(-end_us // 1000) if end else None)
    layouts = [Layout(root) for root in options.roots_from(config, roots)]
    found = load_merged_coverage(layouts, symbols, span)
    warn_of_unknown(layouts, symbols, found.symbols)
    pieces = {symbol: clip(found.intervals(symbol), *bounds) for symbol in found.symbols}
    ids: Mapping[str, tuple[int, int]] = {}
    if len(layouts) == 1 and any(piece.proof for own in pieces.values() for piece in own):
        ids = read_ids(layouts[0], symbols, *span.days).counts()
    if as_json:
        click.echo(_coverage_as_json(found, pieces, ids, bounds, tz))
    else:
        _print_coverage(found, pieces, ids, bounds, tz, wide=wide)


def _coverage_as_json(
    found: Coverage,
    pieces: dict[str, list[Interval]],
    ids: Mapping[str, tuple[int, int]],
    bounds: tuple[int, int],
    tz: tzinfo,
) -> str:
    """For programs: times in ISO 8601, durations in seconds, shares of the claimed time from 0 to 1."""
    gaps = clip(found.gaps, *bounds)
    report = {
        "horizon": _format_us(found.horizon_us, tz),
        "symbols": [
            _summary(symbol, pieces[symbol], tz) | _id_summary(symbol, pieces[symbol], ids) for symbol in pieces
        ],
        "gaps": [_interval_as_row(gap, tz) for gap in gaps],
        "blind_by_cause": {cause: us / 1e6 for cause, us in blind_by_cause(gaps).items()},
        "intervals": [
            {"state": piece.state, **_interval_as_row(piece, tz), "proof": piece.proof, "source": piece.source}
            for own in pieces.values()
            for piece in own
        ],
    }
    return printing.format_json(report)


def _print_coverage(
    found: Coverage,
    pieces: dict[str, list[Interval]],
    ids: Mapping[str, tuple[int, int]],
    bounds: tuple[int, int],
    tz: tzinfo,
    *,
    wide: bool,
) -> None:
    """For people: the symbols, the gaps, the time blind by cause."""
    gaps = clip(found.gaps, *bounds)
    symbols = [_summary(symbol, pieces[symbol], tz) for symbol in pieces]
    heading = ["symbol", "start", "end", "recorded %", "blind %", "unproven %", "filled %", "imported %", "gaps"]
    for brought in ("filled", "imported"):
        if not any(one[brought] for one in symbols):
            heading.remove(f"{brought} %")
            symbols = [{name: value for name, value in one.items() if name != brought} for one in symbols]
    if any(piece.proof for own in pieces.values() for piece in own):
        symbols = [one | _id_summary(one["symbol"], pieces[one["symbol"]], ids) for one in symbols]
        heading += ["proved by ids %", "ids", "missing"]
    spare = (
        "start", "ids", "filled %", "end", "proved by ids %", "unproven %", "gaps", "missing", "imported %", "blind %",
    )  # fmt: skip
    options.print_table(heading, [_summary_as_row(summary) for summary in symbols], spare, wide=wide)
    click.echo(f"\nKnown up to {_format_us(found.horizon_us, tz)}.")
    if ids:
        click.echo(f"\n{format_missing(*map(sum, zip(*ids.values(), strict=True)))}.")
    if gaps:
        rows = [_summary_as_row({**_interval_as_row(gap, tz), "symbol": gap.symbol or "all"}) for gap in gaps]
        click.echo()
        options.print_table(("start", "end", "seconds", "cause", "symbol"), rows, ("end",), wide=wide)
        blind = [(cause, printing.to_milliseconds(us / 1e6)) for cause, us in blind_by_cause(gaps).items()]
        click.echo("\nTime blind, by cause:")
        options.print_table(("cause", "seconds"), blind, (), wide=wide)


def _summary(symbol: str, pieces: list[Interval], tz: tzinfo) -> dict[str, Any]:
    """One symbol's line. Where nothing is claimed there are no times and no shares."""
    shares = sum_shares(pieces)
    claimed_us = sum(shares)
    return {
        "symbol": symbol,
        "start": _format_us(pieces[0].start_us, tz) if pieces else None,
        "end": _format_us(pieces[-1].end_us, tz) if pieces else None,
        "recorded": shares.recorded_us / claimed_us if claimed_us else None,
        "blind": shares.blind_us / claimed_us if claimed_us else None,
        "unproven": shares.unproven_us / claimed_us if claimed_us else None,
        "filled": shares.filled_us / claimed_us if claimed_us else None,
        "imported": shares.imported_us / claimed_us if claimed_us else None,
        "gaps": sum(piece.state == "blind" for piece in pieces),
    }


def _id_summary(symbol: str, pieces: list[Interval], ids: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """What ids say of one symbol: which share of the claimed time they prove, how many came and how many did not."""
    claimed_us = sum(sum_shares(pieces))
    seen, missing = ids.get(symbol, (None, None))
    return {"proved_by_ids": sum_proved(pieces) / claimed_us if claimed_us else None, "ids": seen, "missing": missing}


def _interval_as_row(piece: Interval | Gap, tz: tzinfo) -> dict[str, Any]:
    return {
        "start": _format_us(piece.start_us, tz),
        "end": _format_us(piece.end_us, tz),
        "seconds": (piece.end_us - piece.start_us) / 1e6,
        "cause": piece.cause,
        "symbol": piece.symbol,
    }


def _summary_as_row(row: dict[str, Any]) -> list[Any]:
    """A row for the table: seconds to the millisecond, shares in printing.percent."""
    seconds, share = printing.to_milliseconds, printing.percent
    return [
        value if not isinstance(value, float) else seconds(value) if name == "seconds" else share(value)
        for name, value in row.items()
    ]


def _format_us(at_us: int, tz: tzinfo) -> str:
    return printing.format_time(_EPOCH + timedelta(microseconds=at_us), tz)
