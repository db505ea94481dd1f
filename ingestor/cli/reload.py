"""`ingestor reload`: has the running recorder take over a changed list of tickers."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import click

from ingestor.cli.options import example, json_option, recording_options, settings_from
from ingestor.cli.printing import format_json
from ingestor.config import Flags
from ingestor.errors import ConfigError, IngestorError
from ingestor.layout import Layout, read_holder
from ingestor.ledger import list_ledgers, read_new_facts

_PATIENCE_S = 30.0
_POLL_S = 0.05
_OUTCOMES = ("settings.reloaded", "settings.refused")


@click.command(epilog=example("ingestor reload"))
@recording_options
@json_option
def reload(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Subscribe and unsubscribe what has changed in `tickers`, on the open connection; wait until that is done.

    Prints what was added and dropped, and what else has changed in the file, which needs a restart. A file with a
    mistake is refused with its errors, and the recorder goes on as before: exit 2. The same as SIGHUP to the process,
    which answers only in its log.
    """
    layout = Layout(settings_from(config, Flags(root=root)).storage.root.absolute())
    holder = read_holder(layout)
    if holder is None:
        raise IngestorError(f"nothing records into {layout.root}: there is nobody to reload")
    ledgers = list_ledgers(layout)
    if not ledgers or not holder.pid:
        raise IngestorError(f"the recorder of {layout.root} is just starting: it reads these settings anyway")
    told_before = ledgers[-1].stat().st_size
    try:
        os.kill(holder.pid, signal.SIGHUP)
    except PermissionError:
        raise IngestorError(f"process {holder.pid} belongs to another user: become that user, or root") from None
    outcome = _wait_for_outcome(layout, ledgers[-1], told_before, holder.pid)
    if outcome["fact"] == "settings.refused":
        raise ConfigError(outcome["error"])
    if as_json:
        click.echo(format_json({name: outcome[name] for name in ("added", "dropped", "waiting")}))
        return
    click.echo(f"added: {_list(outcome['added'])}; dropped: {_list(outcome['dropped'])}")
    if outcome["waiting"]:
        click.echo(f"changed as well, and in need of a restart: {_list(outcome['waiting'])}")


def _wait_for_outcome(layout: Layout, ledger: Path, offset: int, pid: int) -> dict[str, Any]:
    """The recorder's answer, from its ledger. Raises IngestorError if none comes."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        for path in list_ledgers(layout):
            if path.name >= ledger.name:  # at midnight another one begins
                for fact in read_new_facts(path, offset if path == ledger else 0)[0]:
                    if fact["fact"] in _OUTCOMES:
                        return fact
        time.sleep(_POLL_S)
    raise IngestorError(f"process {pid} was asked, and has not answered for {_PATIENCE_S:.0f} s: see its log")


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
