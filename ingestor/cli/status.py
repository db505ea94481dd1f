"""`ingestor status`: the status of a running recorder, in a screenful."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from ingestor.cli.options import example, json_option, recording_options, root_from
from ingestor.cli.printing import format_bytes, format_json, format_seconds, format_time
from ingestor.layout import Layout
from ingestor.metrics import REPEATED
from ingestor.operations.recorder_status import BackfillState, Flow, Status, read_status
from ingestor.texts import CAUSES, escape

_QUANTILE = 0.99


@click.command(epilog=example("ingestor status --root data"))
@recording_options
@json_option
def status(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Show the status of a recorder: exit 0 healthy, 1 degraded (each line with ! says why), 3 not running."""
    found = read_status(Layout(root_from(config, root).absolute()))
    if as_json:
        click.echo(format_json({"exit_code": found.exit_code, **asdict(found)}))
    else:
        for heading, text in describe(found):
            click.echo(f"{heading:<11} {escape(text)}")
    sys.exit(found.exit_code)


def describe(found: Status) -> Iterator[tuple[str, str]]:
    """Lines of a heading and its text, within 80 columns but for paths and names."""
    yield "recording", found.root
    if found.holder is None:
        yield "state", "not running"
        return
    yield "state", "degraded" if found.ailments else "healthy"
    for ailment in found.ailments:
        yield "", f"! {ailment}"
    vitals = found.vitals
    if vitals is None:
        yield "process", str(found.holder.pid)
        return
    started = format_time(datetime.fromtimestamp(vitals.started_at, UTC), timespec="seconds")
    age = format_seconds(vitals.at - vitals.started_at)
    yield "process", f"{vitals.pid}, version {vitals.version}; run {vitals.run} since {started} ({age})"
    link = vitals.link
    state = "connected" if link.connected else "not connected"
    if link.redundant > 1:
        state = f"{link.redundant} connections, {link.open} open"
    ticking = f"{link.ticking} of {link.symbols} symbols ticking"
    yield "venue", f"{state}, {ticking}, last heard {format_seconds(link.silence_s)} ago"
    lasted = {cause: link.blind_s.get(cause, 0.0) + link.gap_s * (cause == link.gap) for cause in link.gaps}
    gaps = [
        f"{count} {CAUSES.get(cause, cause)} ({format_seconds(lasted[cause])})" for cause, count in link.gaps.items()
    ]
    yield "gaps", f"in this run: {', '.join(gaps) or 'none'}; connection {link.connections}"
    yield from _describe_flow(vitals.flow)
    disk = vitals.disk
    yield (
        "loss bound",
        f"kill -9 {format_seconds(disk.killed_loss_s)}, power cut {format_seconds(disk.unpowered_loss_s)}",
    )
    for sink in disk.sinks:
        behind = (
            f"{sink.rows:,} rows not there yet, the oldest {format_seconds(sink.seconds)} old"
            if sink.rows
            else "up to date"
        )
        yield f"{sink.name}", behind
    room = f"{format_bytes(disk.free_bytes)} free"
    if found.bytes_per_day is not None:
        room += f", {format_bytes(found.bytes_per_day)} per day"
    if found.days_left is not None:
        room += f": {found.days_left:,.0f} days left"
    yield "disk", room
    if vitals.backfill is not None:
        yield "backfill", _describe_backfill(vitals.backfill, vitals.at)


def _describe_flow(flow: Flow) -> Iterator[tuple[str, str]]:
    repeats = flow.reasons.get(REPEATED, 0)
    rejected = flow.counts.rejected_trades + flow.counts.rejected_frames - repeats
    repeated = f", {repeats:,} came twice" if repeats else ""
    run = f"{flow.counts.trades:,} in this run{repeated}, {rejected:,} rejected"
    yield "trades", f"{flow.trades_per_s:,.1f} per second; {run}"
    if flow.strange:
        yield (
            "unread",
            f"{flow.strange.messages:,} messages fit nothing, such as ({flow.strange.reason}): {flow.strange.sample}",
        )
    if flow.delays.total:
        wanted, bounds = _QUANTILE * flow.delays.total, flow.delays.bounds
        held = (bound for bound, within in zip(bounds, flow.delays.within, strict=True) if within >= wanted)
        bound = next(held, None)
        within = f"more than {format_seconds(bounds[-1])}" if bound is None else format_seconds(bound)
        yield "delay", f"{_QUANTILE:.0%} of the trades came within {within} of the venue's time"
    used = flow.buffer_bytes / flow.buffer_max_bytes
    yield "recorder", f"lag {format_seconds(flow.lag_s)}, buffer {used:.0%} full, {flow.pauses} pauses"


def _describe_backfill(backfill: BackfillState, now: float) -> str:
    done = f"{backfill.filled:,} gaps filled in this run ({backfill.trades:,} trades), {backfill.unfilled:,} not"
    if backfill.error is not None:
        return f"{done}; failed: {backfill.error}"
    if backfill.running:
        return f"{done}; asking {backfill.source} now"
    if backfill.last_round_at is None:
        return f"{done}; {backfill.source} was not asked yet"
    return f"{done}; looked {format_seconds(now - backfill.last_round_at)} ago"
