"""What the log says of a recording as it goes."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prepared import FRAME, prepared_recording, record_frames
from structlog.testing import capture_logs

from ingestor.capture.market_calendar import NEW_YORK
from ingestor.daemon import Report
from ingestor.ledger import now_us
from ingestor.recording import Recording
from ingestor.us_market import Calendar

NOON = datetime(2026, 11, 20, 12, tzinfo=NEW_YORK)
NIGHT = datetime(2026, 11, 21, 1, tzinfo=NEW_YORK)
CHRISTMAS = datetime(2026, 12, 25, 12, tzinfo=NEW_YORK)
TICKERS = ["AAPL", "MSFT", "BINANCE:BTCUSDT", "OANDA:EUR_USD"]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    with prepared_recording(tmp_path, tickers=TICKERS) as prepared:
        yield prepared


@pytest.mark.parametrize(
    ("ticking", "now", "says"),
    [
        (TICKERS, NOON, "not connected; 4 of 4 ticking"),
        (TICKERS[2:], NIGHT, "not connected; 2 of 4 ticking; AAPL, MSFT silent: the US market is closed"),
        (TICKERS[1:], NOON, "not connected; 3 of 4 ticking; AAPL silent: there is no connection"),
        (
            TICKERS[1:2],
            NIGHT,
            (
                "not connected; 1 of 4 ticking; AAPL silent: the US market is closed; "
                "OANDA:EUR_USD silent: the currency market is closed; "
                "BINANCE:BTCUSDT silent: there is no connection"
            ),
        ),
    ],
)
def test_the_first_sentence(recording: Recording, ticking: list[str], now: datetime, says: str) -> None:
    recording.observed.saw_trades(dict.fromkeys(ticking, 1), 1)
    assert Report(recording).summary(now) == says


def test_a_holiday_is_known(recording: Recording) -> None:
    recording.markets.holidays.calendar = Calendar({CHRISTMAS.date(): None})
    recording.observed.saw_trades(dict.fromkeys(TICKERS[2:], 1), 1)
    assert Report(recording).summary(CHRISTMAS).endswith("AAPL, MSFT silent: the US market is closed")


def test_many_silent_symbols_are_not_all_named(tmp_path: Path) -> None:
    with prepared_recording(tmp_path, tickers=[f"S{n}" for n in range(8)]) as recording:
        assert "S0, S1, S2, S3, S4 and 3 more silent" in Report(recording).summary(NOON)


def test_one_sentence_after_the_start_then_a_line_a_minute(recording: Recording) -> None:
    with capture_logs() as logs:
        report = Report(recording)
        begun_s = report._last_at_s
        for second in range(200):
            report.tick(begun_s + second)
    events = [one["event"] for one in logs]
    assert events == ["recording.summarized", *["recording.progressed"] * 3]
    assert {"trades", "frames", "rejected", "lag_ms", "pauses", "connected"} <= logs[1].keys()


JSON = {"type": "json", "url": "ws://127.0.0.1:9", "never_closes": True}


@pytest.mark.parametrize(
    ("feed", "frames", "says"),
    [
        (JSON, [b'{"ping":1492420473027}'], '1 messages came, and none could be read as a trade (bad_symbol): {"ping"'),
        (JSON | {"match": {"T": "t"}}, [b'[{"T":"q"}]'], "none says what `feed.match` asks for (unknown): [{"),
        (JSON, [b'{"symbol":"MSFT","price":1}', b"gone"], "no trade yet, and 1 messages fit nothing (not_json): gone"),
        (JSON, [b'{"symbol":"msft","price":1}'], "trades come of msft, which nobody asked for"),
        ({"url": "ws://127.0.0.1:9"}, [b'{"type":"dance"}'], "none could be read as a trade (unknown): {"),
        ({"url": "ws://127.0.0.1:9"}, [FRAME % (b"MSFT", 1)], "none could be read as a trade (bad_time): {"),
    ],
)
def test_a_silence_is_told_with_what_came_instead(
    tmp_path: Path, feed: dict[str, Any], frames: list[bytes], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared_recording(tmp_path, feed=feed, tickers=["AAPL", "MSFT"]) as recording:
        monkeypatch.setattr(type(recording.groups[0].sessions[0]), "connected", True)
        record_frames(recording, frames, now_us())
        told = Report(recording).summary(NOON)
    assert says in told
    assert "not on your plan" not in told
