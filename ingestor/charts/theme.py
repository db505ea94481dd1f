"""Themes: the colours of charts, on light and on dark ground."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours as `#rrggbb`."""

    scheme: str
    """`light` or `dark`: what a browser is told, for its own scroll bars."""
    ground: str
    ink: str
    quiet: str
    """Of ticks and notes."""
    grid: str
    up: str
    down: str
    average: str
    """Of an SMA, and of a MACD."""
    exponential: str
    """Of an EMA, and of a signal."""
    bands: str
    gaps: tuple[str, ...]
    """A colour for each cause of blindness, in turn."""

    def gap_colours(self, causes: Iterable[str]) -> dict[str, str]:
        """The colour of each of these causes: in alphabetical order, so that pictures of the same causes agree."""
        return {cause: self.gaps[at % len(self.gaps)] for at, cause in enumerate(sorted(set(causes)))}


LIGHT = Theme(
    scheme="light",
    ground="#ffffff", ink="#1f2933", quiet="#6b7785", grid="#e8ebee", up="#2f8f7f", down="#c65d4a",
    average="#2f6db3", exponential="#c98a1b", bands="#8796a8",
    gaps=("#d9a441", "#b07aa1", "#7f9fbf", "#c77d6b", "#8fae7e"),
)  # fmt: skip
DARK = Theme(
    scheme="dark",
    ground="#14181d", ink="#e3e8ed", quiet="#8b97a4", grid="#262d35", up="#4db6a2", down="#e07a65",
    average="#6ba6e8", exponential="#e0ad4f", bands="#708090",
    gaps=("#d9a441", "#b58bb0", "#7f9fbf", "#d08a78", "#8fae7e"),
)  # fmt: skip
