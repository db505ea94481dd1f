"""Commands that check and tidy a recording: `ingestor verify` and `ingestor compact`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog

from ingestor.cli.options import config_option, example, json_option, recording_options, root_from, roots_option
from ingestor.cli.printing import format_bytes, format_json, wrap_text
from ingestor.errors import ConfigError, IngestorError
from ingestor.layout import Layout
from ingestor.logs import configure_logs
from ingestor.store import StorePath, locate_root
from ingestor.texts import escape

if TYPE_CHECKING:
    from ingestor.dataset.verify import Difference, Hole, Verification
    from ingestor.trade_ids import IdRanges
_HOLES_SHOWN = 20
_FOREIGN_SHOWN = 5
_LOWEST = 19
"""The priority of what the recorder starts in the background."""

log = structlog.get_logger()


@click.command(epilog=example("ingestor verify --root data", "ingestor verify --root data-a --root s3://bucket/data-b"))
@config_option
@roots_option
@json_option
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="COPY",
    help="Compare the recording with this copy instead: a mirror, s3://bucket/path, or another directory.",
)
def verify(config: Path | None, roots: tuple[Path, ...], as_json: bool, against: Path | None) -> None:
    """Recount every file of a recording against its ledger, and name each difference.

    Rows, page checksums, schema, order, dates, sequence numbers and rejects; the values of CSV files against Parquet;
    and that every frame and every trade became exactly one thing. Where the venue counts its trades, it names the ids
    that are missing, too: those say what never came, and are no difference. Works beside a running recorder. Exit 0
    where all is well, 1 where something is not.

    Of a copy (a mirror, what `ingestor publish` made), the manifest of each closed day is checked as well: the size
    and the SHA-256 of each file.

    With --root several times each is verified, and the worst exit code is that of all. At the end stands whether
    they are of one venue, and which ids none of them has.
    """
    if len(roots) > 1 and against is not None:
        raise click.UsageError("--against compares one recording: give --root once")
    if against is not None:
        _compare(Layout(root_from(config, roots[0] if roots else None)), Layout(locate_root(against)), as_json=as_json)
    if len(roots) > 1:
        _verify_each(roots, as_json=as_json)
    verification, differences = _verify(root_from(config, roots[0] if roots else None))
    if as_json:
        click.echo(format_json(_as_report(verification, differences)))
    else:
        _print_verified(verification, differences)
    sys.exit(1 if differences else 0)


def _verify(root: Path) -> "tuple[Verification, list[Difference]]":
    """One recording; on a terminal with a bar."""
    from ingestor.dataset.verify import Verification  # pyarrow is heavy

    verification = Verification(Layout(root))
    steps = verification.run()
    if not sys.stderr.isatty():
        return verification, [difference for step in steps for difference in step]
    with click.progressbar(steps, length=verification.files, file=sys.stderr) as shown:
        return verification, [difference for step in shown for difference in step]


def _verify_each(roots: Sequence[Path], *, as_json: bool) -> None:
    """Print what is found of each, one that can't be read included, and of all together; exit with the worst code."""
    from ingestor.dataset.verify import compare_recordings

    reports: list[dict[str, Any]] = []
    found: list[tuple[Layout, IdRanges]] = []
    seen: dict[str, Path] = {}
    code = 0
    for root in roots:
        try:
            place = locate_root(root)
            same = seen.setdefault(str(place if isinstance(place, StorePath) else place.resolve()), root)
            if same is not root:
                reports.append({"root": str(root), "same_as": str(same)})
                click.echo(escape(f"{root} is {same}: verified once"), err=True)
                continue
            verification, differences = _verify(place)
        except (IngestorError, OSError) as error:
            reports.append({"root": str(root), "error": str(error)})
            click.echo(escape(f"error: {root} was not verified: {error}"), err=True)
            code = max(code, error.exit_code if isinstance(error, IngestorError) else 1)
            continue
        found.append((Layout(place), verification.ids))
        reports.append({"root": str(root), **_as_report(verification, differences)})
        code = max(code, 1 if differences else 0)
        if not as_json:
            click.echo(escape(f"{root}:"))
            _print_verified(verification, differences)
            click.echo()
    together = compare_recordings(found)
    if as_json:
        click.echo(format_json({"roots": reports, "together": asdict(together)}))
    elif len(found) > 1:
        _print_holes(together.holes)
        click.echo(wrap_text("", escape(str(together))))
    sys.exit(code)


def _as_report(verification: "Verification", differences: "list[Difference]") -> dict[str, Any]:
    return {"differences": [asdict(one) for one in differences], "account": asdict(verification.account)}


def _print_verified(verification: "Verification", differences: "list[Difference]") -> None:
    account = verification.account
    for difference in differences:
        click.echo(escape(str(difference)))
    _print_holes(account.holes)
    for line in str(account).splitlines():
        click.echo(wrap_text("", line))
    if account.foreign:
        more = ", …" if len(account.foreign) > _FOREIGN_SHOWN else ""
        named = ", ".join(account.foreign[:_FOREIGN_SHOWN]) + more
        said = f"not of this recording, and not looked at: {len(account.foreign):,} ({named})"
        click.echo(wrap_text("", escape(said)))
    # Nothing is said of what was not read.
    files = f"{account.not_looked_at:,} file{' was' if account.not_looked_at == 1 else 's were'}"
    unseen = f"{files} not looked at: their segments are not finished yet" if account.not_looked_at else ""
    if differences:
        click.echo(f"Differences: {len(differences)}{unseen and f'; {unseen}'}")
    else:
        click.echo(f"No differences; {unseen}." if unseen else "Everything is there, once.")


def _print_holes(holes: "Sequence[Hole]") -> None:
    for hole in holes[:_HOLES_SHOWN]:
        click.echo(escape(str(hole)))
    if len(holes) > _HOLES_SHOWN:
        click.echo(f"… and {len(holes) - _HOLES_SHOWN:,} more such holes: --json names all")


def _compare(layout: Layout, copy: Layout, *, as_json: bool) -> None:
    """Print what a copy lacks, or has otherwise, and exit."""
    from ingestor.dataset.verify import compare_with_copy

    compared = list(compare_with_copy(layout, copy))
    found = [difference for of_day in compared for difference in of_day]
    if as_json:
        click.echo(format_json({"days": len(compared), "differences": [asdict(one) for one in found]}))
    else:
        for difference in found:
            click.echo(escape(str(difference)))
        days = f"{len(compared):,} day{'' if len(compared) == 1 else 's'} compared with {copy.root}"
        click.echo(f"{days}: {f'{len(found):,} differences' if found else 'the same'}.")
    sys.exit(1 if found else 0)


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
