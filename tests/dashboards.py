"""`ingestor dashboard` as a process, and what a browser that has it open is asked."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the page has, asked of Bokeh's own models.
MODELS = "[...(window.Bokeh?.documents[0]?._all_models.values() ?? [])]"
BARS = f"{MODELS}.filter(one => one.type == 'ColumnDataSource' && one.data.close)"
PANES = f"{MODELS}.filter(one => one.type == 'Figure')"
RANGE = f"{PANES}[0].x_range"
CAUSES = f"{MODELS}.filter(one => one.type == 'ColumnDataSource' && one.data.cause).map(one => [...one.data.cause])"


def array(name: str, at: int = 0) -> str:
    """A column of one of the charts, as a list."""
    return f"Array.from({BARS}.at({at})?.data.{name} ?? [])"


@contextmanager
def running_dashboard(root: Path, *options: str, code: int = 0) -> Iterator[str]:
    """Its URL; it must end in order, without a word on stderr."""
    command = [sys.executable, "-m", "ingestor", "dashboard", "--root", str(root), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (code, "")
