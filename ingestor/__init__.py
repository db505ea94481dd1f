"""finnhub-ingestor: records a venue's trades, and what it could not record.

The analysis API reads a recording: trades, bars, coverage, rejects, a description, and trades as they come. Each is
imported when it is first asked for: `import ingestor` alone costs nothing.
"""

__version__ = "0.2.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingestor.dataset.bars import bars_of, read_bars
    from ingestor.dataset.coverage import SymbolState, read_coverage
    from ingestor.dataset.describe import describe
    from ingestor.dataset.rejects import read_rejects
    from ingestor.dataset.trades import follow, read_trades, scan_trades

__all__ = [
    "SymbolState", "__version__", "bars_of", "describe", "follow", "read_bars", "read_coverage", "read_rejects",
    "read_trades", "scan_trades",
]  # fmt: skip

_PLACES = {
    "SymbolState": "ingestor.dataset.coverage",
    "bars_of": "ingestor.dataset.bars",
    "describe": "ingestor.dataset.describe",
    "follow": "ingestor.dataset.trades",
    "read_bars": "ingestor.dataset.bars",
    "read_coverage": "ingestor.dataset.coverage",
    "read_rejects": "ingestor.dataset.rejects",
    "read_trades": "ingestor.dataset.trades",
    "scan_trades": "ingestor.dataset.trades",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ingestor' has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
