"""Keeps a process small: without packages that it never uses, and without memory that it no longer needs.

pyarrow imports numpy when it is imported, and pandas when it makes its first array; structlog imports rich, tenacity
tornado. Where they are installed, that is half of the CPU and memory of a command's start, and of a recorder that works
on columns alone. Each of them does without, as on a machine that has none of them.

Of what a recorder frees, the C library and Arrow's own allocator would keep tens of megabytes for months. Arrow takes
its memory from the C library, and what lies free there goes back to the system every few seconds: see
docs/performance.md for the figures.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = frozenset({"numpy", "pandas", "rich", "tornado"})
_TRIM_S = 10.0


class _Refusal:
    """Stands first among the finders of `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        package = fullname.partition(".")[0]
        if package in _UNUSED and package not in sys.modules:  # one that is loaded may load its parts later
            raise ModuleNotFoundError(f"this process does without {fullname}", name=fullname)
        return None


def refuse_unused() -> None:
    """From now on this process can't import numpy, pandas, rich and tornado, but for those that it has imported
    already. To be called before pyarrow is imported.
    """
    if not any(isinstance(finder, _Refusal) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Refusal())


def use_system_allocator() -> None:
    """Arrow takes its memory from the C library, unless the environment names another allocator. To be called before
    pyarrow is imported; children inherit it.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class FreeMemory:
    """Gives what lies free in the C library's heaps back to the system, every ten seconds."""

    def __init__(self) -> None:
        # Only glibc has it: https://man7.org/linux/man-pages/man3/malloc_trim.3.html
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._due_s = 0.0

    def tick(self, now_s: float) -> None:
        """At most some tenths of a millisecond, since little gathers in ten seconds."""
        if self._trim is not None and now_s >= self._due_s:
            self._trim(0)
            self._due_s = now_s + _TRIM_S
