"""What every sink keeps, on its real destination: order, nothing lost, nothing twice unless its guarantee says so."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorders import eventually
from requirements import of_tier
from sink_contract import EXTRA, KINDS, Destination, check, destination_of, fill_journal
from structlog.testing import capture_logs

from ingestor.layout import Layout

ROWS = int(os.environ.get("SINK_ROWS", str(of_tier(20_000, 2000))))
"""SINK_ROWS=1000000 is the long form."""


SERVERS = {"postgres": "postgres", "redis": "redis-server", "tansu": "tansu", "s3": "weed"}
"""What a kind needs of the machine."""
EVERY_KIND = (*KINDS, "tansu")
"""With a Kafka broker that is not librdkafka's."""


@pytest.fixture(
    params=[
        pytest.param(kind, marks=pytest.mark.needs(SERVERS[kind])) if kind in SERVERS else kind for kind in EVERY_KIND
    ]
)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Destination, Layout]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with destination_of(request.param, tmp_path) as made:
        yield made


Place = tuple[Destination, Layout]


class TestBasic:
    def test_every_row_in_order(self, place: Place) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=3, records=4, rows=50)
        destination.carry(layout)
        assert check(destination, truth) == 0

    def test_the_columns_of_a_feeds_own(self, place: Place) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=2, records=2, rows=20, schema=EXTRA)
        destination.carry(layout)
        assert check(destination, truth) == 0
        assert destination.rows().column_names[-2:] == ["trade_id", "side"]

    @pytest.mark.long
    def test_many_rows(self, place: Place) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=2, records=10, rows=ROWS // 20)
        destination.carry(layout)
        assert check(destination, truth) == 0


class TestRecovery:
    def test_a_second_life_goes_on_where_the_first_ended(self, place: Place) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=2, records=3, rows=30)
        destination.carry(layout)
        destination.carry(layout)
        assert check(destination, truth) == 0

    @pytest.mark.parametrize(
        "ticked",
        [
            pytest.param(False, id="in mid-batch", marks=pytest.mark.long),
            pytest.param(True, id="between write and cursor"),
        ],
    )
    def test_crashes(self, place: Place, ticked: bool) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=3, records=5, rows=40)
        for events in (2, 7, 13):
            destination.crash(layout, events, ticked=ticked)
        destination.carry(layout)
        repeats = check(destination, truth)
        assert repeats <= (2 + 7 + 13) * 40

    @pytest.mark.long
    def test_the_destination_goes_away_and_comes_back(self, place: Place) -> None:
        destination, layout = place
        truth = fill_journal(layout, segments=3, records=5, rows=40)
        destination.kill()
        stop = threading.Event()
        with capture_logs() as logs:
            thread = threading.Thread(target=destination.worker(layout, stop).run)
            thread.start()
            eventually(lambda: "sink.failed" in [one["event"] for one in logs], "its failure told")
            destination.start()
            eventually(lambda: _holds(destination, truth.num_rows), "all rows there")
        stop.set()
        thread.join()
        check(destination, truth)


def _holds(destination: Destination, rows: int) -> bool:
    try:
        return bool(destination.rows().num_rows >= rows)
    except Exception:  # noqa: BLE001  nothing is there yet: no table, no topic, no stream
        return False
