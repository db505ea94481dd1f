"""What the browser holds of a symbol's chart, and the little of it that changes from one moment to the next. Pure."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestor.charts.indicators import bollinger, ema, macd, rsi, sma
from ingestor.charts.look import Look
from ingestor.charts.series import Series

Frame = dict[str, NDArray[Any]]
"""Columns of one length; a row a bar, or a few bars merged into one."""

_SEEN_BARS = 400
"""So many, merged if need be, are between the edges of what is seen; as many again wait on either side."""
_GROUPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 900, 3600)
_SUMMED = {"high": np.fmax, "low": np.fmin, "volume": np.add}


class Cut(NamedTuple):
    """The part of a chart that the browser has: bars that begin in [start, end), `group` intervals merged into one."""

    start_ms: float
    end_ms: float
    group: int


class Delta(NamedTuple):
    """How one frame becomes the next: rows that are put in the place of others, then rows that are appended."""

    patches: dict[str, list[tuple[slice, NDArray[Any]]]]
    appended: Frame


def choose_cut(before: Cut | None, seen: tuple[float, float], interval_ms: int) -> Cut:
    """What a browser needs that shows this stretch of time (ms): what it has, where that is enough."""
    width_ms = seen[1] - seen[0]
    group = next((one for one in _GROUPS if width_ms <= one * interval_ms * _SEEN_BARS), _GROUPS[-1])
    if before is not None and before.group == group and before.start_ms <= seen[0] and seen[1] <= before.end_ms:
        return before
    return Cut(seen[0] - width_ms, seen[1] + width_ms, group)


def make_frame(series: Series, cut: Cut, look: Look) -> Frame:
    """Bars and indicators of a cut: `time` is the middle of a bar in ms since 1970, NaN is nothing.

    Merged bars bear the indicators of the last of them.
    """
    closes = series.closes
    bands, difference = bollinger(closes), macd(closes)
    columns = {
        "start": series.starts_ms, "open": series.open, "high": series.high, "low": series.low, "close": series.close,
        "volume": series.volume, "sma": sma(closes), "ema": ema(closes), "upper": bands.upper, "lower": bands.lower,
        "rsi": rsi(closes), "macd": difference.line, "signal": difference.signal, "histogram": difference.histogram,
    }  # fmt: skip
    first, last = np.searchsorted(series.starts_ms, [cut.start_ms, cut.end_ms])
    length_ms = series.interval_ms * cut.group
    frame = merge_bars({name: column[first:last] for name, column in columns.items()}, length_ms)
    return {
        "time": frame.pop("start") + length_ms / 2,
        **frame,
        "body": (frame["open"] + frame["close"]) / 2,
        "body_height": abs(frame["open"] - frame["close"]),
        "volume_middle": frame["volume"] / 2,
        "histogram_middle": frame["histogram"] / 2,
        "histogram_height": abs(frame["histogram"]),
        "width": np.full(len(frame["open"]), length_ms * 0.7),
        "colour": np.where(frame["close"] >= frame["open"], look.up, look.down),
        "sign": np.where(frame["histogram"] >= 0, look.up, look.down),
    }


def merge_bars(columns: Frame, length_ms: int) -> Frame:
    """Bars that begin in the same `length_ms` as one."""
    groups = columns["start"] // length_ms
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    lasts = np.append(firsts[1:], len(groups))[: len(firsts)] - 1
    merged = {name: column[lasts] for name, column in columns.items()}
    if len(firsts):
        merged |= {name: combine.reduceat(columns[name], firsts) for name, combine in _SUMMED.items()}
    return merged | {"start": groups[firsts] * length_ms, "open": columns["open"][firsts]}


def make_blind_frame(series: Series, look: Look) -> Frame:
    """A row a stretch of blindness."""
    colours = look.gap_colours(one.cause for one in series.blind)
    return {
        "start": np.array([one.start_ms for one in series.blind], dtype=np.float64),
        "end": np.array([one.end_ms for one in series.blind], dtype=np.float64),
        "cause": np.array([one.cause for one in series.blind], dtype=np.str_),
        "colour": np.array([colours[one.cause] for one in series.blind], dtype=np.str_),
        "seconds": np.array([(one.end_ms - one.start_ms) / 1000 for one in series.blind], dtype=np.float64),
    }


def find_delta(old: Frame, new: Frame) -> Delta | None:
    """What must be sent of the next frame of the same cut; None where bars are gone, and the whole must be."""
    before, after = len(old["time"]), len(new["time"])
    if after < before:
        return None
    first = min(first_difference(old[name], new[name][:before]) for name in new)
    patches = {name: [(slice(first, before), new[name][first:before])] for name in new} if first < before else {}
    return Delta(patches, {name: column[before:] for name, column in new.items()} if after > before else {})


def first_difference(old: NDArray[Any], new: NDArray[Any]) -> int:
    """The first row in which two columns of one length differ; their length where they are the same. NaN is NaN."""
    different = old != new
    if old.dtype.kind == "f":
        different &= ~(np.isnan(old) & np.isnan(new))
    return int(different.argmax()) if different.any() else len(old)
