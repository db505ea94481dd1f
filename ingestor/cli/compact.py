"""`ingestor compact`: the files of each closed day become one."""

import os
from datetime import UTC, datetime
from pathlib import Path

import click
import structlog

from ingestor.cli.options import example, json_option, recording_options, root_from
from ingestor.cli.printing import format_bytes, format_json
from ingestor.errors import ConfigError
from ingestor.layout import StorePath
from ingestor.logs import configure_logs

_LOWEST = 19

log = structlog.get_logger()


@click.command(epilog=example("ingestor compact --root data"))
@recording_options
@json_option
@click.option("--background", is_flag=True, help="At the lowest priority, as the recorder starts it after midnight.")
def compact(config: Path | None, root: Path | None, as_json: bool, background: bool) -> None:
    """Merge the files of each day before today (UTC) into one, sorted; a recorder and readers may go on. What the
    ledger tells of these days becomes data: see `coverage/` and `accounts/`.

    Prints what became of each day. The recorder compacts by itself, an hour after midnight. What is written is read
    back and compared before anything is removed. Late trades make a new small file, which the next compaction merges.
    """
    from ingestor.closed_days import close_days
    from ingestor.dataset.compact import compact_days, locked_maintenance
    from ingestor.dataset.snapshot import open_recording

    configure_logs("info" if background else "warning", "auto", [])
    if background:
        os.nice(_LOWEST)
    layout, today = open_recording(root_from(config, root)), datetime.now(UTC).date()
    if isinstance(layout.root, StorePath):
        raise ConfigError(f"{layout.root} is a copy, which is only read: compact the root that it was made of")
    with locked_maintenance(layout):
        for day in close_days(layout, today):
            log.info("day.closed", date=day.isoformat())
    done = []
    for one in compact_days(layout, today):
        done.append(one)
        if not as_json:
            click.echo(
                f"{one.day}: {one.rows:,} trades, {one.files_before} files ({format_bytes(one.bytes_before)}) "
                f"→ {one.files_after} ({format_bytes(one.bytes_after)})"
            )
    if as_json:
        click.echo(format_json([one._asdict() for one in done]))
    elif not done:
        click.echo("Nothing to compact.")
