"""Commands for frames as they came (`storage.raw`): `ingestor raw` prints them, `redecode` decodes them again."""

import base64
import contextlib
import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from ingestor.capture.buffer import FrameBlock
from ingestor.capture.recorder import BlockDecoder, DecodedBlock
from ingestor.capture.rejects import Rejects
from ingestor.capture.stream_state import Delays
from ingestor.capture.wall_clock import VenueTime
from ingestor.cli import options, printing
from ingestor.cli.merge import ROTATION, begin_root, sealing
from ingestor.closed_days import close_coverage
from ingestor.config import DEFAULT_PATH, load_settings
from ingestor.config.feeds import FeedSettings, FinnhubSettings
from ingestor.coverage import Closed, Interval, clip, find_coverage, join_best
from ingestor.dataset.arguments import Span, to_span
from ingestor.dataset.coverage import load_coverage
from ingestor.dataset.raw import Difference, are_received_in, compare_trades, read_frames, read_recorded
from ingestor.dataset.snapshot import open_recording
from ingestor.errors import ConfigError, NotARecording
from ingestor.feeds import Feed, Frames, make_feed
from ingestor.history import read_history
from ingestor.journal.writer import Block, Journal, Segments
from ingestor.layout import Layout
from ingestor.logs import configure_logs
from ingestor.schema import recorded
from ingestor.texts import escape

_WARM_UP_MS = 30_000
"""What is decoded before the span: longer than duplicates of two connections are remembered."""
_AT_ONCE = 1 << 19
"""So many trades are compared at a time."""
_REJECTS_BYTES = 1 << 30
_SHOWN = ("timestamp", "symbol", "price", "volume", "conditions")


@click.command(epilog=options.example("ingestor raw --start 2026-11-20T14:30 --end 2026-11-20T14:31 --symbols AAPL"))
@options.query_options
def raw(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
) -> None:
    """Print the frames that were received in a span, as they came, a line each, in the order of their receipt.

    The time of receipt, connection, number in the run, and the text, in which what doesn't show is escaped. --symbols:
    only frames in which one of these stands, as the venue writes it. --json prints a line of JSON each: `text`, or
    `base64` where the bytes are no UTF-8. Frames are kept where `storage.raw` asks for it.
    """
    layout = Layout(options.root_from(config, root))
    if not layout.raw.is_dir() and not layout.journal.is_dir():
        raise NotARecording(f"{layout.root} holds no recording: there is no `raw` and no `journal` in it")
    span = to_span(options.read_span(start, end, tz))
    names = [
        text.encode()
        for symbol in symbols or ()
        for text in {json.dumps(symbol), json.dumps(symbol, ensure_ascii=False)}
    ]
    found = False
    for table in read_frames(layout, span):
        for row in table.filter(are_received_in(table, span)).to_pylist():
            if symbols is None or any(name in row["payload"] for name in names):
                found = True
                sys.stdout.write(_format_frame(row, tz, as_json=as_json))
    if not found:
        hint = "none" if layout.raw.is_dir() else "storage.raw asks for them to be kept, and there is no `raw` here"
        click.echo(f"no such frames: {hint}", err=True)


def _format_frame(row: dict[str, Any], tz: tzinfo, *, as_json: bool) -> str:
    payload = row.pop("payload")
    at = printing.format_time(row["received_at"], tz, "microseconds")
    if not as_json:
        text = escape(payload.decode(errors="backslashreplace"))
        return f"{at}  {row['connection']}  {row['frame']}  {text}\n"
    told = row | {"received_at": at, "text": None, "base64": None}
    try:
        told["text"] = payload.decode()
    except UnicodeDecodeError:
        told["base64"] = base64.b64encode(payload).decode()
    return printing.format_json(told, indent=None) + "\n"


@click.command(epilog=options.example("ingestor redecode --start 2026-11-20 --end 2026-11-21 --diff"))
@options.recording_options
@options.span_options
@options.json_option
@options.wide_option
@click.option("--into", type=click.Path(path_type=Path), help="Write the trades to this directory, not there yet.")
@click.option("--diff", "with_diff", is_flag=True, help="Print each trade that differs.")
def redecode(
    config: Path | None,
    root: Path | None,
    start: str | None,
    end: str | None,
    tz: tzinfo,
    as_json: bool,
    wide: bool,
    into: Path | None,
    with_diff: bool,
) -> None:
    """Build the trades of a span anew, of the frames as they came, with this version and these settings.

    Prints how many trades of each symbol differ from those that were recorded: added, missing or changed. The span is
    one of receipt. The recording stays as it is: --into writes the trades and their coverage to a root of its own.
    """
    configure_logs("warning", "auto", [])
    layout = open_recording(options.root_from(config, root))
    settings = _read_feed(config, layout)
    feed = make_feed(settings, "", "")
    span = to_span(options.read_span(start, end, tz))
    report = Report(named=with_diff)
    if into is None:
        for _ in compare_again(layout, feed, span, report):
            pass
    else:
        redecode_into(layout, Layout(into), feed, settings.venue, span, report)
    counts = report.counts
    kinds = ("added", "missing", "changed")
    rows = [(symbol, *(counts[symbol, kind] for kind in kinds)) for symbol in sorted({symbol for symbol, _ in counts})]
    if as_json:
        told: dict[str, Any] = {
            "frames": report.frames,
            "trades": {"recorded": report.recorded, "decoded": report.decoded},
            "symbols": [dict(zip(("symbol", *kinds), row, strict=True)) for row in rows],
        }
        if with_diff:
            told["differences"] = [
                {"kind": one.kind, "recorded": _as_told(one.recorded, tz), "decoded": _as_told(one.decoded, tz)}
                for one in report.differences
            ]
        click.echo(printing.format_json(told))
        return
    if with_diff:
        for one in report.differences:
            click.echo(_format_difference(one, tz))
    if rows:
        options.print_table(("symbol", *kinds), rows, (), wide=wide)
    click.echo(
        f"{report.frames:,} frames: {report.recorded:,} trades recorded, {report.decoded:,} decoded now; "
        f"{f'{counts.total():,} differ' if rows else 'no difference'}"
    )
    if not report.frames:
        click.echo("no frames were kept in this time: storage.raw asks for it", err=True)


def _as_told(trade: dict[str, Any] | None, tz: tzinfo) -> dict[str, Any] | None:
    return None if trade is None else printing.format_trade(trade, tz)


def _format_difference(one: Difference, tz: tzinfo) -> str:
    shown = one.decoded or one.recorded or {}
    trade = printing.format_trade(shown, tz)
    line = "  ".join(escape(str(trade[name])) for name in _SHOWN if trade[name] is not None)
    if one.recorded is not None and one.decoded is not None:
        before = printing.format_trade(one.recorded, tz)
        other = (f"{name} was {before[name]}" for name in trade if trade[name] != before[name])
        line += escape(f"  ({', '.join(other)})")
    return f"{one.kind:<7}  {line}"


def _read_feed(config: Path | None, layout: Layout) -> FeedSettings:
    """The feed of the settings; Finnhub where there are none. Raises ConfigError where another was recorded."""
    found = config is not None or DEFAULT_PATH.exists()
    settings = load_settings(config or DEFAULT_PATH).feed if found else FinnhubSettings()
    history = read_history(layout)
    if history.feed not in {None, settings.type} or history.venue not in {None, settings.venue}:
        known = history.venue or history.feed
        raise ConfigError(f"{layout.root} holds the trades of {known}: name its settings with --config")
    return settings


# Decoding again


@dataclass(slots=True)
class Report:
    """What was decoded again, and how it differs from what was recorded."""

    named: bool = True
    """Each difference is kept, not only counted."""
    frames: int = 0
    recorded: int = 0
    """Trades."""
    decoded: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Differences by symbol and kind."""
    differences: list[Difference] = field(default_factory=list)
    kept_us: list[tuple[int, int]] = field(default_factory=list)
    """From which to which receipt frames were kept without a hole."""


@dataclass(frozen=True, slots=True)
class _Again:
    """Frames of one block that were received in the span, decoded again."""

    run: int
    received_us: tuple[int, int]
    """The first and the last receipt."""
    numbers: tuple[int, int]
    """The sequence numbers of the trades that were recorded of the block: the first, and the one behind the last."""
    decoded: DecodedBlock
    goes_on: bool
    """No frame of the run is missing between these and those before."""


def _decode_again(layout: Layout, feed: Feed, span: Span) -> Iterator[_Again]:
    """Block by block, as the recorder did it; of one that lies in the span in part, that part."""
    warm = None if span.start_ms is None else span.start_ms - _WARM_UP_MS
    run = next_frame = -1
    venue, delays = VenueTime(), Delays()
    decoder = BlockDecoder(feed, 1, venue)
    for table in read_frames(layout, replace(span, start_ms=warm)):
        parts = zip(table.column("block").to_pylist(), are_received_in(table, span).to_pylist(), strict=True)
        at = 0
        for (_, inside), same in groupby(parts):
            part = table.slice(at, sum(1 for _ in same))
            at += part.num_rows
            [first] = part.slice(0, 1).to_pylist()
            before = decoder.next_frame, decoder.next_sequence
            if first["run"] != run:  # it knew nothing of the frames of the run before
                run, next_frame, venue = first["run"], -1, VenueTime()
                decoder = BlockDecoder(feed, 1, venue)
                decoder.next_frame, decoder.next_sequence = before
            received_us = part.column("received_at").cast(pa.int64()).to_pylist()
            frames = Frames(part.column("payload").to_pylist(), received_us)
            decoded = decoder.decode(FrameBlock(first["connection"], frames))
            newest_us = delays.add(decoded.batch)
            if newest_us is not None:
                venue.saw_trades(newest_us)
            if inside:
                numbers = first["sequence"], first["sequence"] + first["trades"]
                goes_on = first["frame"] == next_frame
                yield _Again(run, (received_us[0], received_us[-1]), numbers, decoded, goes_on)
            else:
                decoder.next_frame, decoder.next_sequence = before
            next_frame = first["frame"] + part.num_rows


def compare_again(layout: Layout, feed: Feed, span: Span, report: Report) -> Iterator[DecodedBlock]:
    """What the frames of the span are decoded to now, block by block; `report` tells what differs once all are taken.

    Raises FormatTooNew, DamagedFile, OSError.
    """
    held: list[_Again] = []
    trades = 0
    for one in _decode_again(layout, feed, span):
        if held and (held[0].run != one.run or trades >= _AT_ONCE):
            _settle(layout, feed, span, report, held)
            held, trades = [], 0
        held.append(one)
        trades += one.numbers[1] - one.numbers[0] + one.decoded.batch.num_rows
        report.frames += one.decoded.header.counts.frames
        first_us, last_us = one.received_us
        if one.goes_on and report.kept_us:
            report.kept_us[-1] = report.kept_us[-1][0], last_us
        else:
            report.kept_us.append((first_us, last_us))
        yield one.decoded
    if held:
        _settle(layout, feed, span, report, held)


def _settle(layout: Layout, feed: Feed, span: Span, report: Report, blocks: list[_Again]) -> None:
    """Compare these blocks of a run with what was recorded of them."""
    schema = recorded(feed.schema)
    columns = [name for name in schema.names if name != "sequence"]
    first, end = min(one.numbers[0] for one in blocks), max(one.numbers[1] for one in blocks)
    rows = read_recorded(layout, first, end, schema)
    rows = rows.filter(are_received_in(rows, span))
    numbers, rows = rows.column("sequence").to_pylist(), rows.select(columns).combine_chunks()
    for (first, end), same in groupby(blocks, key=lambda one: one.numbers):
        at = bisect_left(numbers, first)
        before = rows.slice(at, bisect_left(numbers, end) - at)
        now = pa.Table.from_batches([one.decoded.batch for one in same]).select(columns).combine_chunks()
        report.recorded += before.num_rows
        report.decoded += now.num_rows
        for difference in compare_trades(before, now):
            report.counts[difference.symbol, difference.kind] += 1
            if report.named:
                report.differences.append(difference)


def redecode_into(layout: Layout, into: Layout, feed: Feed, venue: str, span: Span, report: Report) -> None:
    """Write what the frames of the span are decoded to now, and its coverage, into a root that is not there yet.

    Raises ConfigError, FormatTooNew, DamagedFile, OSError.
    """
    schema, column = recorded(feed.schema), feed.terms.id_column
    with contextlib.closing(begin_root(into, feed.name, venue, schema, column, redecoded=str(layout.root))) as ledger:
        journal = Journal(into, Segments(into, 1, 1, feed.name, schema), ROTATION)
        rejects = Rejects(into, 1, _REJECTS_BYTES)
        with sealing(into, ledger, column):
            for block in compare_again(layout, feed, span, report):
                if block.refused:
                    rejects.write(block.refused)
                journal.append(Block(block.header, block.batch, block.reasons))
                if journal.unsynced.full:
                    journal.sync()
                    journal.rotate_if_due()
                if journal.failed:
                    raise journal.failed
            rejects.close()
            journal.close()
        # Coverage tells of the times whose frames are all there. Ids prove nothing: they may be read otherwise now.
        coverage = load_coverage(layout)
        intervals: dict[str, list[Interval]] = {}
        for symbol in coverage.symbols:
            told = coverage.intervals(symbol)
            pieces = [one for first_us, last_us in report.kept_us for one in clip(told, first_us, last_us + 1)]
            intervals[symbol] = join_best(symbol, (one._replace(proof=None) for one in pieces))
        close_coverage(into, find_coverage([], closed=Closed(intervals, [])))
        ledger.record("run.stopped", error=None)
