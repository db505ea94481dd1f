"""`ingestor coverage`: when each symbol was recorded, and when not."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import click

from ingestor.accounts import read_ids
from ingestor.cli.options import (
    example,
    json_option,
    merging_options,
    print_table,
    read_span,
    roots_from,
    span_options,
    wide_option,
)
from ingestor.cli.printing import format_json, format_table, format_time, percent, to_milliseconds
from ingestor.coverage import Coverage, Gap, Interval, blind_by_cause, clip, sum_proved, sum_shares
from ingestor.dataset import times
from ingestor.dataset.coverage import load_merged_coverage, warn_of_unknown
from ingestor.layout import Layout
from ingestor.trade_ids import format_missing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER_US = 1 << 62


@click.command(epilog=example("ingestor coverage --symbols AAPL --start 2026-11-20 --tz America/New_York"))
@merging_options
@span_options
@json_option
@wide_option
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
    asked = read_span(start, end, tz)
    start_us = 0 if asked.start is None else (asked.start - _EPOCH) // timedelta(microseconds=1)
    end_us = _FOREVER_US if asked.end is None else (asked.end - _EPOCH) // timedelta(microseconds=1)
    bounds = start_us, end_us
    span = times.Span(start_us // 1000 if start else None, -(-end_us // 1000) if end else None)
    layouts = [Layout(root) for root in roots_from(config, roots)]
    found = load_merged_coverage(layouts, symbols, span)
    warn_of_unknown(layouts, symbols, found.symbols)
    pieces = {symbol: clip(found.intervals(symbol), *bounds) for symbol in found.symbols}
    ids: Mapping[str, tuple[int, int]] = {}
    if len(layouts) == 1 and any(piece.proof for own in pieces.values() for piece in own):
        ids = read_ids(layouts[0], symbols, *span.days).counts()
    if as_json:
        click.echo(_as_json(found, pieces, ids, bounds, tz))
    else:
        _print_text(found, pieces, ids, bounds, tz, wide=wide)


def _as_json(
    found: Coverage,
    pieces: dict[str, list[Interval]],
    ids: Mapping[str, tuple[int, int]],
    bounds: tuple[int, int],
    tz: tzinfo,
) -> str:
    """For programs: times in ISO 8601, durations in seconds, shares of the claimed time from 0 to 1."""
    gaps = clip(found.gaps, *bounds)
    report = {
        "horizon": _time(found.horizon_us, tz),
        "symbols": [
            _summary(symbol, pieces[symbol], tz) | _id_summary(symbol, pieces[symbol], ids) for symbol in pieces
        ],
        "gaps": [_as_row(gap, tz) for gap in gaps],
        "blind_by_cause": {cause: us / 1e6 for cause, us in blind_by_cause(gaps).items()},
        "intervals": [
            {"state": piece.state, **_as_row(piece, tz), "proof": piece.proof, "source": piece.source}
            for own in pieces.values()
            for piece in own
        ],
    }
    return format_json(report)


def _print_text(
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
    heading = ["symbol", "start", "end", "recorded %", "blind %", "unproven %", "filled %", "gaps"]
    if not any(one["filled"] for one in symbols):
        heading.remove("filled %")
        symbols = [{name: value for name, value in one.items() if name != "filled"} for one in symbols]
    if any(piece.proof for own in pieces.values() for piece in own):
        symbols = [one | _id_summary(one["symbol"], pieces[one["symbol"]], ids) for one in symbols]
        heading += ["proved by ids %", "ids", "missing"]
    spare = ("start", "ids", "filled %", "end", "proved by ids %", "unproven %", "gaps", "missing", "blind %")
    print_table(heading, [_shown(summary) for summary in symbols], spare, wide=wide)
    click.echo(f"\nKnown up to {_time(found.horizon_us, tz)}.")
    if ids:
        click.echo(f"\n{format_missing(*map(sum, zip(*ids.values(), strict=True)))}.")
    if gaps:
        rows = [_shown({**_as_row(gap, tz), "symbol": gap.symbol or "all"}) for gap in gaps]
        click.echo()
        print_table(("start", "end", "seconds", "cause", "symbol"), rows, ("end",), wide=wide)
        blind = [(cause, to_milliseconds(us / 1e6)) for cause, us in blind_by_cause(gaps).items()]
        click.echo("\nTime blind, by cause:\n" + format_table(("cause", "seconds"), blind))


def _summary(symbol: str, pieces: list[Interval], tz: tzinfo) -> dict[str, Any]:
    """One symbol's line. Where nothing is claimed there are no times and no shares."""
    shares = sum_shares(pieces)
    claimed_us = sum(shares)
    return {
        "symbol": symbol,
        "start": _time(pieces[0].start_us, tz) if pieces else None,
        "end": _time(pieces[-1].end_us, tz) if pieces else None,
        "recorded": shares.recorded_us / claimed_us if claimed_us else None,
        "blind": shares.blind_us / claimed_us if claimed_us else None,
        "unproven": shares.unproven_us / claimed_us if claimed_us else None,
        "filled": shares.filled_us / claimed_us if claimed_us else None,
        "gaps": sum(piece.state == "blind" for piece in pieces),
    }


def _id_summary(symbol: str, pieces: list[Interval], ids: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """What ids say of one symbol: which share of the claimed time they prove, how many came and how many did not."""
    claimed_us = sum(sum_shares(pieces))
    seen, missing = ids.get(symbol, (None, None))
    return {"proved_by_ids": sum_proved(pieces) / claimed_us if claimed_us else None, "ids": seen, "missing": missing}


def _as_row(piece: Interval | Gap, tz: tzinfo) -> dict[str, Any]:
    return {
        "start": _time(piece.start_us, tz),
        "end": _time(piece.end_us, tz),
        "seconds": (piece.end_us - piece.start_us) / 1e6,
        "cause": piece.cause,
        "symbol": piece.symbol,
    }


def _shown(row: dict[str, Any]) -> list[Any]:
    """A row for the table: seconds to the millisecond, shares in percent."""
    seconds, share = to_milliseconds, percent
    return [
        value if not isinstance(value, float) else seconds(value) if name == "seconds" else share(value)
        for name, value in row.items()
    ]


def _time(at_us: int, tz: tzinfo) -> str:
    return format_time(_EPOCH + timedelta(microseconds=at_us), tz)
