"""Arguments of the analysis API: roots, names and words, checked."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ingestor.errors import ConfigError
from ingestor.store import locate_root

Engine = Literal["pandas", "arrow"]
Roots = str | Path | Sequence[str | Path]
"""The directory of a recording or the address of its copy (`s3://bucket/path`), or a list of those that several
recorders of one venue made.
"""
Names = str | Sequence[str]
"""One name, or several in whatever holds text: a list, a set, a Series, an array."""


def find_root(root: Roots) -> Path:
    """The directory of a recording, or its place at an address. Raises NotARecording for an address that can't be read,
    ValueError for what is neither.
    """
    if not isinstance(root, str | os.PathLike):
        raise ValueError(f"{root!r} is no root: give the directory of one recording")  # noqa: TRY004  see find_names
    return locate_root(root)


def find_roots(root: Roots) -> list[Path]:
    """The directory of a recording, or those of several recorders of one venue. Raises as `find_root`."""
    if isinstance(root, str | Path) or not isinstance(root, list | tuple):
        return [find_root(root)]
    if not root:
        raise ValueError("no root: give the directory of a recording, or a list of them")
    return [find_root(one) for one in root]


def find_names(names: Names | None, what: str = "symbol") -> tuple[str, ...] | None:
    """The names that a caller gives; text is one name. None is all. Raises ValueError with a sentence."""
    if names is None:
        return None
    if isinstance(names, str):
        return (str(names),)
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise ValueError(f"{names!r} is no {what}: write it as text, or a list of texts")  # noqa: TRY004  as below
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no {what}: each must be text")  # noqa: TRY004  one error for all arguments
    return tuple(map(str, found))


def check_engine(engine: str) -> None:
    """Before anything is read. Raises ValueError for another name, ConfigError where pandas is missing."""
    check_word("engine", engine, ("pandas", "arrow"))
    if engine == "pandas":
        try:
            import pandas  # noqa: F401, ICN001  is it there?
        except ImportError:
            raise ConfigError(
                "pandas is not installed: pip install 'finnhub-ingestor[analysis]', or ask for engine='arrow'"
            ) from None


def check_word(argument: str, word: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where an argument that takes one of some words is given another."""
    if word not in known:
        raise ValueError(f"{argument} must be {' or '.join(map(repr, known))}, not {word!r}")
