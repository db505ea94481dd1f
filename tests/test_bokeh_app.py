"""What the dashboard's widgets are given."""

from pathlib import Path

from bokeh.document import Document
from bokeh.models import MultiChoice
from recordings import Recording

from ingestor.charts.bokeh_app import Dashboard, View
from ingestor.charts.series import LIGHT


def test_a_symbol_is_no_markup(tmp_path: Path) -> None:
    """Bokeh shows labels of choices as HTML."""
    hostile = "<img src=x onerror=fetch('//evil')>"
    recording = Recording(tmp_path / "data", ["AAPL", hostile])
    recording.prove(["AAPL", hostile], "2026-01-02")
    document = Document()
    Dashboard(document, View(recording.layout.root, ["AAPL", hostile], "1m", LIGHT))
    (choice,) = document.select({"type": MultiChoice})
    assert choice.options == [
        ("<img src=x onerror=fetch('//evil')>", "&lt;img src=x onerror=fetch(&#x27;//evil&#x27;)&gt;"),
        ("AAPL", "AAPL"),
    ]
