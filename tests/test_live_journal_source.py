"""What a server takes from a recording: the prices it ended with, how it stands, and its trades as they come."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from recordings import Print, Recording, to_us
from test_live_updates import unframed

from ingestor.layout import locked_root
from ingestor.live.board import Price, State
from ingestor.live.hub import Hub, TradeBlock
from ingestor.live.journal_source import JournalSource, read_quotes
from ingestor.live.subscriptions import ClientLanguage, Limits, Subscriber

NOON = datetime(2026, 1, 6, 12, tzinfo=UTC)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path / "data", ["A", "B"], started="2026-01-05T00:00")
    recording.prove(["A", "B"], "2026-01-05T00:00")
    return recording


def told(block: TradeBlock | None) -> list[float]:
    assert block is not None
    return [price.price for trades in block.trades for price in trades.prices]


def test_quotes_are_those_of_the_newest_date_that_has_them(recording: Recording) -> None:
    recording.write(Print("2026-01-05T10:00", "A", 1, 1), Print("2026-01-05T10:00", "B", 2, 1))
    recording.seal()
    recording.write(
        Print("2026-01-06T10:00", "A", 10, 1),
        Print("2026-01-06T11:00", "A", 11, None),
        Print("2026-01-05T23:00", "A", 5, 1),
    )
    quotes = {quote.symbol: quote for quote in read_quotes(recording.layout, ["A", "B"], NOON.timestamp())}
    assert quotes["A"].last == Price(11, None, to_us("2026-01-06T11:00") // 1000)
    assert quotes["A"].first_price == 10
    assert quotes["B"].last == Price(2, 1, to_us("2026-01-05T10:00") // 1000)


def test_a_course_goes_back_a_quarter_of_an_hour(recording: Recording) -> None:
    recording.write(
        *(Print(NOON - timedelta(seconds=age_s), "A", price, 1)
          for age_s, price in ((3600, 9), (900, 1), (895, 2), (30, 3), (9, 4), (1, 5)))
    )  # fmt: skip
    (quote,) = read_quotes(recording.layout, ["A"], NOON.timestamp())
    assert list(quote.course) == [2, 3, 5]


def test_a_gap_that_is_open_is_blindness_now(recording: Recording) -> None:
    recording.write(Print("2026-01-05T10:00", "A", 1, 1))
    source = JournalSource(recording.layout)
    assert source.state().states == {"A": State("recorded"), "B": State("recorded")}
    recording.fact(
        "gap.opened", "2026-01-05T11:00", gap="1", cause="stall", since=to_us("2026-01-05T11:00"), symbol=None
    )
    assert source.state().states == {"A": State("blind", "stall"), "B": State("blind", "stall")}
    recording.fact(
        "gap.closed", "2026-01-05T12:00", gap="1", cause="stall", until=to_us("2026-01-05T12:00"), symbol=None
    )
    assert source.state().states["A"] == State("recorded")


def test_who_holds_the_root_records(recording: Recording) -> None:
    source = JournalSource(recording.layout)
    assert source.state().recording is False
    with locked_root(recording.layout):
        assert source.state().recording is True


def test_blocks_come_from_the_moment_it_was_made(recording: Recording) -> None:
    recording.write(Print("2026-01-05T10:00", "A", 1, 1))
    source, stop = JournalSource(recording.layout), threading.Event()
    recording.write(Print("2026-01-05T10:01", "A", 2, 1), Print("2026-01-05T10:01", "B", 3, 1))
    blocks = source.blocks(stop)
    block = next(blocks)
    assert told(block) == [2, 3]
    assert block is not None
    assert block.received_at == pytest.approx(to_us("2026-01-05T10:01") / 1e6 + 0.1)
    stop.set()
    assert list(blocks) == []


def test_who_stood_still_too_long_is_told_and_goes_on(recording: Recording) -> None:
    source, stop = JournalSource(recording.layout), threading.Event()
    blocks = source.blocks(stop)
    recording.write(Print("2026-01-05T10:00", "A", 1, 1))
    assert told(next(blocks)) == [1]
    for price in (2, 3, 4, 5):
        recording.write(Print("2026-01-05T10:01", "A", price, 1))
        recording.seal()  # and the journal lets go of it
    after = [next(blocks)]
    while after[-1] is not None:
        after.append(next(blocks))
    recording.write(Print("2026-01-05T10:02", "A", 6, 1))
    assert told(next(blocks)) == [6]


def test_who_asked_is_told_of_a_gap_and_of_its_end(recording: Recording) -> None:
    recording.write(Print("2026-01-05T10:00", "A", 1, 1))
    source = JournalSource(recording.layout)
    hub = Hub(source, Limits())

    def look(*, recording: bool) -> None:
        for _ in range(2):  # what is known is not told again
            hub.set_state(source.state()._replace(recording=recording))

    def heard(subscriber: Subscriber) -> list[dict[str, Any]]:
        return [json.loads(text) for text in unframed(subscriber.next_frames(0.0))]

    look(recording=True)
    listener, other = (hub.join(ClientLanguage.PRICES) for _ in range(2))
    hub.subscribe(listener, ["A"], None, gaps=True)
    hub.subscribe(other, ["A"], None)
    assert [message["price"] for message in [*heard(listener), *heard(other)]] == [1, 1]  # the last
    for fact, field, at in (("gap.opened", "since", "11:00"), ("gap.closed", "until", "12:00")):
        times = {field: to_us(f"2026-01-05T{at}")}
        recording.fact(fact, f"2026-01-05T{at}", gap="1", cause="stall", symbol=None, **times)
        look(recording=True)
    told = {"symbol": "A", "cause": "stall"}
    assert heard(listener) == [
        {"event": "gap", "state": "blind", **told},
        {"event": "gap_end", "state": "recorded", **told},
    ]
    look(recording=False)
    late = hub.join(ClientLanguage.PRICES)
    hub.subscribe(late, ["B"], None, gaps=True)
    nobody = {"event": "gap", "state": "blind", "cause": "no_recorder"}
    assert (heard(listener), heard(late)) == ([{**nobody, "symbol": "A"}], [{**nobody, "symbol": "B"}])
    hub.unsubscribe(listener, ["A"])
    hub.subscribe(listener, ["A"], None)  # anew, and without
    look(recording=True)
    assert [message.get("event") for message in [*heard(listener), *heard(other)]] == [None]


def test_a_recording_is_served_where_redis_is_not_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['redis'] = None; import ingestor.live.journal_source"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
