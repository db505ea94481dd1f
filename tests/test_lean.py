"""A process that refuses pandas works on columns as before, and has none of it."""

import subprocess
import sys

WORK = """
import sys
from ingestor.lean import refuse_pandas
refuse_pandas()
import pyarrow as pa, pyarrow.compute as pc
column = pa.array([3, 1, 2])
print(pc.sort_indices(column).to_pylist(), pc.add(column, 1).to_pylist(), "pandas" in sys.modules)
try:
    import pandas
except ModuleNotFoundError as error:
    print(error)
"""


def test_columns_without_pandas() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[1, 2, 0] [4, 2, 3] False", "this process does without pandas"]
