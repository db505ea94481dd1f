"""A recording whose parts are wired and at rest, for what looks at one from outside."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingestor.config import Settings
from ingestor.layout import Layout
from ingestor.recording import Recording, prepare

SETTINGS: Mapping[str, Any] = {
    "feed": {"url": "ws://127.0.0.1:9"},
    "tickers": ["AAPL", "MSFT"],
    "storage": {"formats": ["parquet", "csv"], "min_free": "0B"},
    "health": {"listen": "127.0.0.1:0"},
}
FRAME = b'{"type":"trade","data":[{"p":189.5,"s":"%s","t":%d,"v":100}]}'


@contextmanager
def prepared_recording(folder: Path, **more: Any) -> Iterator[Recording]:
    """One on `folder`/data. Its files are closed at the end; nothing of it runs unless the test does."""
    settings = Settings.model_validate({**SETTINGS, **more})
    layout = Layout(folder / "data")
    layout.create()
    recording = prepare(settings, "demo", layout, threading.Event(), threading.Event())
    try:
        yield recording
    finally:
        recording.ledger.close()


def record_frames(recording: Recording, payloads: list[bytes], received_us: int) -> None:
    """Let the recorder take these frames, to the end of its journal."""
    recording.buffer.put(1, payloads, received_us)
    recording.buffer.close()
    recording.recorder.run()
