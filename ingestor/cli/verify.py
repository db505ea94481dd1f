"""`ingestor verify`: is everything there, once, and sound?"""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ingestor.cli.options import example, json_option, recording_options, root_from
from ingestor.cli.printing import format_json
from ingestor.layout import Layout
from ingestor.texts import escape

_HOLES_SHOWN = 20


@click.command(epilog=example("ingestor verify --root data"))
@recording_options
@json_option
def verify(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Recount every file of a recording against its ledger, and name each difference.

    Rows, page checksums, schema, order, dates, sequence numbers and rejects; the values of CSV files against Parquet;
    and that every frame and every trade became exactly one thing. Where the venue counts its trades, it names the ids
    that are missing, too: those say what never came, and are no difference. Works beside a running recorder. Exit 0
    where all is well, 1 where something is not.
    """
    from ingestor.dataset.verify import Verification  # pyarrow is heavy

    verification = Verification(Layout(root_from(config, root)))
    steps = verification.run()
    if sys.stderr.isatty():
        with click.progressbar(steps, length=verification.files, file=sys.stderr) as shown:
            differences = [difference for step in shown for difference in step]
    else:
        differences = [difference for step in steps for difference in step]
    account = verification.account
    if as_json:
        report = {"differences": [asdict(one) for one in differences], "account": asdict(account)}
        click.echo(format_json(report))
    else:
        for difference in differences:
            click.echo(escape(str(difference)))
        for hole in account.holes[:_HOLES_SHOWN]:
            click.echo(escape(str(hole)))
        if len(account.holes) > _HOLES_SHOWN:
            click.echo(f"… and {len(account.holes) - _HOLES_SHOWN:,} more such holes: --json names all")
        click.echo(account)
        # Nothing is said of what was not read.
        files = f"{account.not_looked_at:,} file{' was' if account.not_looked_at == 1 else 's were'}"
        unseen = f"{files} not looked at: their segments are not finished yet" if account.not_looked_at else ""
        if differences:
            click.echo(f"Differences: {len(differences)}{unseen and f'; {unseen}'}")
        else:
            click.echo(f"No differences; {unseen}." if unseen else "Everything is there, once.")
    sys.exit(1 if differences else 0)
