"""`ingestor tail`: trades as they come, from the journal of a running recorder."""

import os
import sys
from datetime import tzinfo
from pathlib import Path
from typing import Any

import click

from ingestor.cli.options import example, json_option, reading_options, root_from, tz_option
from ingestor.cli.printing import format_json, format_number, format_trade
from ingestor.texts import escape


@click.command(
    epilog=example(
        "ingestor tail --symbols AAPL",
        "14:30:00.123  AAPL                       189.45           100  1,12",
    )
)
@reading_options
@tz_option
@json_option
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N trades.")
def tail(
    config: Path | None,
    root: Path | None,
    symbols: tuple[str, ...] | None,
    tz: tzinfo,
    as_json: bool,
    count: int | None,
) -> None:
    """Print each trade as it is recorded, a line each, until Ctrl-C. The recorder does not notice.

    Time, symbol, price, volume, conditions, and whether its frame repeats the one before; --json has all columns.
    """
    from ingestor.dataset.follow import follow

    left = count
    try:
        for batch in follow(root_from(config, root), symbols):
            rows = batch.to_pylist()[:left]
            sys.stdout.write("".join(_format(row, tz, as_json=as_json) for row in rows))
            sys.stdout.flush()
            left = None if left is None else left - len(rows)
            if left == 0:
                return
    except BrokenPipeError:  # `ingestor tail | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _format(row: dict[str, Any], tz: tzinfo, *, as_json: bool) -> str:
    if as_json:
        return format_json(format_trade(row, tz), indent=None) + "\n"
    price, volume = format_number(row["price"]), "" if row["volume"] is None else format_number(row["volume"])
    again = "  repeated" if row["repeated"] else ""
    at = f"{row['timestamp'].astimezone(tz):%H:%M:%S.%f}"[:-3]
    line = f"{at}  {escape(row['symbol']):<18} {price:>14}  {volume:>12}  {escape(row['conditions'] or '')}{again}"
    return f"{line.rstrip()}\n"
