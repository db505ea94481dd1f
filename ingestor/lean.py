"""Keeps packages out of a process that never uses them.

pyarrow imports numpy when it is imported, and pandas when it makes its first array; structlog imports rich. Where they
are installed, that is half of the CPU and memory of a command's start, and of a recorder that works on columns alone.
Each of them does without, as on a machine that has none of them.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = frozenset({"numpy", "pandas", "rich"})


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
    """From now on this process can't import numpy, pandas and rich, but for those that it has imported already. To be
    called before pyarrow is imported.
    """
    if not any(isinstance(finder, _Refusal) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Refusal())
