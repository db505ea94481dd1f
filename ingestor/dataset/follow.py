"""Trades as they are recorded, from any process: a view, which neither slows the recorder nor is waited for."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.dataset.arguments import Names, find_names, find_root, warn_of_unknown
from ingestor.dataset.times import Time, find_time
from ingestor.errors import NotARecording
from ingestor.journal.follower import Follower, Rows, find_journal_end
from ingestor.layout import Layout
from ingestor.schema import TRADES

_POLL_S = 0.005
_REST_POLL_S = 0.025
"""Where nothing has come for a second: then most of what a look costs is the waking up."""
_REST_S = 1.0


def follow(
    root: str | Path,
    symbols: Names | None = None,
    from_: Literal["now", "start"] | Time = "now",
    idle_s: float | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of trades (schema.TRADES) in order of arrival, across rotations and restarts of the recorder, without
    end.

    >>> import ingestor
    >>> batch = next(ingestor.follow("data", symbols=["AAPL"], from_="start"))
    >>> batch.column("symbol").unique().to_pylist()
    ['AAPL']

    `from_`: `now`, `start` (what the journal still holds), or a time of receipt, in UTC where it names no zone.

    With `idle_s` an empty batch
    comes whenever nothing came for that long, so that the caller gets a turn. Raises NotARecording where `root` has
    no journal, Lagged where the caller fell behind what the journal keeps, FormatTooNew.
    """
    chosen = find_names(symbols)
    since = None
    if not (isinstance(from_, str) and from_ in ("now", "start")):
        since = from_ if isinstance(from_, datetime) and from_.tzinfo else find_time(from_)
    layout = Layout(find_root(root))
    if not layout.journal.is_dir():
        raise NotARecording(f"{layout.root} holds no recording: there is no {layout.journal.name}/ in it")
    follower = Follower(
        layout, find_journal_end(layout) if since is None and from_ == "now" else None, synced_only=False
    )
    wanted = None if chosen is None else pa.array(chosen, pa.string())
    warn_of_unknown(layout, chosen)
    heard_at_s = last_row_s = time.monotonic()
    while True:
        for event in follower.read():
            if isinstance(event, Rows) and (batch := _select(event.batch, wanted, since)).num_rows:
                yield batch
                heard_at_s = last_row_s = time.monotonic()
        if idle_s is not None and time.monotonic() - heard_at_s >= idle_s:
            yield pa.RecordBatch.from_pylist([], schema=TRADES)
            heard_at_s = time.monotonic()
        time.sleep(_POLL_S if time.monotonic() - last_row_s < _REST_S else _REST_POLL_S)


def _select(batch: pa.RecordBatch, symbols: pa.Array | None, since: datetime | None) -> pa.RecordBatch:
    if symbols is not None:
        batch = batch.filter(pc.is_in(batch.column("symbol"), symbols))
    if since is not None:
        batch = batch.filter(pc.greater_equal(batch.column("received_at"), since))
    return batch
