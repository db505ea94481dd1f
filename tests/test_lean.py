"""A process that refuses what it never uses works on columns as before, and has none of it."""

import subprocess
import sys

WORK = """
import sys
from ingestor.lean import refuse_unused
refuse_unused()
refuse_unused()
import pyarrow as pa, pyarrow.compute as pc, structlog
column = pa.array([3, 1, 2])
print(pc.sort_indices(column).to_pylist(), pc.add(column, 1).to_pylist())
print(*sorted({"numpy", "pandas", "rich"} & set(sys.modules)))
for name in ("numpy", "pandas", "rich.console"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_columns_without_what_is_not_used() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "[1, 2, 0] [4, 2, 3]",
        "",
        "this process does without numpy",
        "this process does without pandas",
        "this process does without rich",
    ]
