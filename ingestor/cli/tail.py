"""`ingestor tail`: trades as they come, from the journal of a running recorder."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from ingestor.cli.options import config_option, format_json, json_option, root_from, root_option, symbols_option


@click.command()
@config_option
@root_option
@symbols_option
@json_option
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N trades.")
def tail(
    config: Path | None, root: Path | None, symbols: tuple[str, ...] | None, as_json: bool, count: int | None
) -> None:
    """Print each trade as it is recorded, a line each, until Ctrl-C. The recorder does not notice.

    \b
    ingestor tail --symbols AAPL
    14:30:00.123  AAPL                   189.4500       100  1,12
    """  # noqa: D301  \b is click's mark for text as it stands
    from ingestor.dataset.follow import follow

    left = count
    try:
        for batch in follow(root_from(config, root), symbols):
            rows = batch.to_pylist()[:left]
            sys.stdout.write("".join(_format(row, as_json=as_json) for row in rows))
            sys.stdout.flush()
            left = None if left is None else left - len(rows)
            if left == 0:
                return
    except BrokenPipeError:  # `ingestor tail | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _format(row: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return format_json(row, indent=None) + "\n"
    volume = "" if row["volume"] is None else f"{row['volume']:,.10g}"
    again = "  repeated" if row["repeated"] else ""
    at = f"{row['timestamp']:%H:%M:%S.%f}"[:-3]
    return f"{at}  {row['symbol']:<18} {row['price']:>14,.4f} {volume:>12}  {row['conditions'] or ''}{again}\n"
