"""Two venues never share a root."""

from pathlib import Path

import pytest
from prepared import prepared_recording

from ingestor.errors import ConfigError

BINANCE = {"type": "binance"}
ONE = {"type": "json", "url": "wss://one.example/ws"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, BINANCE),
        (BINANCE, ONE),
        (ONE, ONE | {"url": "wss://two.example/ws"}),
        (ONE | {"url": "ws://127.0.0.1:19100"}, ONE | {"url": "ws://127.0.0.1:19102"}),
        (ONE | {"name": "a"}, ONE | {"name": "b"}),
    ],
)
def test_another_venue_is_refused(first: dict[str, str], second: dict[str, str], tmp_path: Path) -> None:
    with prepared_recording(tmp_path, feed=first):
        pass
    with pytest.raises(ConfigError, match="a root of its own"), prepared_recording(tmp_path, feed=second):
        pass


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"url": "ws://127.0.0.1:8765"}),
        (ONE, ONE | {"url": "wss://one.example:443/v2?a=1", "signed_prices": "true"}),
        (ONE, ONE | {"url": "wss://moved.example/ws", "name": "one.example"}),
    ],
)
def test_the_same_venue_goes_on(first: dict[str, str], second: dict[str, str], tmp_path: Path) -> None:
    for feed in (first, second):
        with prepared_recording(tmp_path, feed=feed) as recording:
            assert recording.run
