"""Coverage, as a caller asks for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa

from ingestor.coverage import clip
from ingestor.dataset.arguments import Names, find_names, find_root, warn_of_unknown
from ingestor.dataset.coverage import read_coverage as find_root_coverage
from ingestor.dataset.rows import Engine, as_frame, check_engine
from ingestor.dataset.times import Time, find_span
from ingestor.layout import Layout
from ingestor.schema import RECEIVED_AT

if TYPE_CHECKING:
    from pandas import DataFrame

COVERAGE = pa.schema(
    [
        ("symbol", pa.string()),
        ("state", pa.string()),  # recorded, blind or unproven
        ("cause", pa.string()),  # of blindness; else null
        ("start", RECEIVED_AT),
        ("end", RECEIVED_AT),
    ]
)
_FOREVER_MS = 1 << 52


@overload
def read_coverage(root: str | Path, symbols: Names | None = ..., start: Time | None = ...,
                  end: Time | None = ..., tz: str = ..., *,
                  engine: Literal["pandas"] = ...) -> "DataFrame": ...  # fmt: skip
@overload
def read_coverage(root: str | Path, symbols: Names | None = ..., start: Time | None = ...,
                  end: Time | None = ..., tz: str = ..., *,
                  engine: Literal["arrow"]) -> pa.Table: ...  # fmt: skip
def read_coverage(
    root: str | Path,
    symbols: Names | None = None,
    start: Time | None = None,
    end: Time | None = None,
    tz: str = "UTC",
    *,
    engine: Engine = "pandas",
) -> Any:
    """When each symbol was *recorded*, *blind* (and why) or *unproven*, in [start, end), sorted by (symbol, start).

    >>> import ingestor
    >>> coverage = ingestor.read_coverage("data", symbols=["AAPL"])
    >>> set(coverage["state"]) <= {"recorded", "blind", "unproven"}
    True

    Unproven: asked for, and no trade came on this connection yet, so that silence may be the market or a subscription
    that doesn't work. A symbol's intervals don't overlap; where there is none, it was not asked for.

    Warns of a symbol that is not recorded.

    Raises NotARecording, ValueError for a time that is none, ConfigError where pandas is missing.
    """
    check_engine(engine)
    span = find_span(start, end, tz)
    chosen = find_names(symbols)
    layout = Layout(find_root(root))
    coverage = find_root_coverage(layout, chosen, span=span)
    warn_of_unknown(layout, chosen, coverage.symbols)
    start_us = (span.start_ms or 0) * 1000
    end_us = (_FOREVER_MS if span.end_ms is None else span.end_ms) * 1000
    intervals = [one for symbol in coverage.symbols for one in clip(coverage.intervals(symbol), start_us, end_us)]
    columns = [list(column) for column in zip(*intervals, strict=True)] or [[] for _ in COVERAGE]
    return as_frame(pa.Table.from_pydict(dict(zip(COVERAGE.names, columns, strict=True)), schema=COVERAGE), engine, tz)
