"""PostgreSQL: what the contract of all sinks doesn't say."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from journals import NOON, block, make_journal, make_root, read_events, trades
from recordings import Print, Recording
from sink_contract import EXTRA, ROOT, Postgres, fill_journal
from structlog.testing import capture_logs

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Rows
from ingestor.layout import Layout
from ingestor.sinks import postgres_db
from ingestor.sinks.postgres_db import PostgresDatabase

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with closing(Postgres()) as destination:
        yield destination


@pytest.fixture
def destination(postgres: Postgres, request: pytest.FixtureRequest) -> Postgres:
    """With a schema of this test's own."""
    postgres.use_schema(f"of_{abs(hash(request.node.name))}")
    return postgres


def sink_of(destination: Postgres, layout: Layout, root: str = ROOT) -> PostgresDatabase:
    return PostgresDatabase(destination.settings, destination.server.password, root, layout)


class TestBasic:
    def test_the_table_the_index_and_the_values(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 3)
        destination.carry(layout)
        assert destination.query(
            "SELECT timestamp::text, symbol, price, volume, conditions, received_at::text, repeated FROM trades"
        ) == [
            ("2026-11-20 12:00:00+00", "BINANCE:BTCUSDT", 107.76, 2.0, "", "2026-11-20 12:00:00+00", False),
            ("2026-11-20 12:00:00.001+00", "BRK.B", 107.77, 3.0, "1,12", "2026-11-20 12:00:00.000001+00", False),
            ("2026-11-20 12:00:00.002+00", "AAPL", 107.78, 4.0, None, "2026-11-20 12:00:00.000002+00", False),
        ]
        [(index,)] = destination.query("SELECT indexdef FROM pg_indexes WHERE indexname = 'trades_by_time'")
        assert index.endswith('(symbol, "timestamp")')

    def test_columns_that_come_later(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 2)
        destination.carry(layout)
        fill_journal(layout, 1, 1, 2, run=2, schema=EXTRA)
        destination.carry(layout)
        rows = destination.query("SELECT trade_id = sequence, side FROM trades ORDER BY sequence")
        assert rows == [(None, None), (None, None), (True, "buy"), (True, None)]

    def test_both_feeds_in_one_transaction(self, destination: Postgres, tmp_path: Path) -> None:
        plain, extra = make_root(tmp_path / "plain"), make_root(tmp_path / "extra")
        fill_journal(plain, 1, 1, 2)
        fill_journal(extra, 1, 1, 2, run=2, schema=EXTRA)
        with closing(sink_of(destination, plain)) as sink:
            first, second = (event for event in (*read_events(plain), *read_events(extra)) if isinstance(event, Rows))
            sink.write(first)
            sink.write(second)
            assert sink.committed() == first.at
            sink.tick(0.0)
            assert sink.committed() == second.at
        assert destination.query("SELECT count(*) AS rows, count(trade_id) AS ids FROM trades") == [(4, 2)]

    def test_the_coverage_beside_the_trades(self, destination: Postgres, tmp_path: Path) -> None:
        recording = Recording(tmp_path / "data", ["A"], started="2026-01-05T00:00")
        recording.prove(["A"], "2026-01-05T00:00")
        recording.write(Print("2026-01-06T10:00", "A", 1, 1))
        with closing(sink_of(destination, recording.layout)) as sink:
            [rows] = (event for event in read_events(recording.layout) if isinstance(event, Rows))
            sink.write(rows)
            while destination.query("SELECT max(start)::date::text AS day FROM coverage") != [("2026-01-06",)]:
                sink.tick(0.0)
        assert destination.query('SELECT symbol, state, start::text, "end"::text FROM coverage ORDER BY start') == [
            ("A", "recorded", "2026-01-05 00:00:00+00", "2026-01-06 00:00:00+00"),
            ("A", "recorded", "2026-01-06 00:00:00+00", "2026-01-06 10:00:00.1+00"),
        ]

    def test_a_partition_per_date(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        destination.use_schema(destination.settings.schema_name, partition="day")
        truth = fill_journal(layout, 1, 2, 20)
        destination.carry(layout)
        assert destination.query("SELECT tableoid::regclass::text, count(*) FROM trades GROUP BY 1") == [
            ("trades_20261120", truth.num_rows)
        ]


class TestKnownErrors:
    def test_a_character_that_its_text_cannot_hold(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        batch = trades(1 << 40, 2)
        odd = batch.set_column(
            batch.schema.get_field_index("conditions"), batch.schema.field("conditions"), pa.array(["a\0b", None])
        )
        journal = make_journal(layout, 1, 1, clock=lambda: NOON)
        journal.append(block(odd))
        journal.close()
        with capture_logs() as logs:
            destination.carry(layout)
        assert destination.query("SELECT conditions FROM trades ORDER BY sequence") == [("a\ufffdb",), (None,)]
        assert [one["column"] for one in logs if one["event"] == "text.replaced"] == ["conditions"]

    def test_a_schema_of_another_root_is_refused(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 2)
        destination.carry(layout)
        with pytest.raises(SinkUnavailable, match="another root"):
            sink_of(destination, layout, "another")

    def test_a_process_that_was_overtaken_writes_no_more(self, destination: Postgres, tmp_path: Path) -> None:
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 2, 5)
        first, second = (event for event in read_events(layout) if isinstance(event, Rows))
        with closing(sink_of(destination, layout)) as new:
            with closing(sink_of(destination, layout)) as old:
                old.write(first)
                new.write(first)
                new.tick(0.0)
                with pytest.raises(SinkUnavailable, match="another process"):
                    old.tick(0.0)
            new.write(second)
            new.tick(0.0)
        assert destination.query("SELECT count(*) FROM trades") == [(10,)]

    def test_a_password_that_is_wrong_is_not_repeated(self, destination: Postgres, tmp_path: Path) -> None:
        with pytest.raises(SinkUnavailable, match="authentication failed") as caught:
            PostgresDatabase(destination.settings, "wrong%2Fsecret", ROOT, make_root(tmp_path))
        assert "secret" not in str(caught.value)

    def test_a_server_that_stands_still(
        self, destination: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It neither answers nor closes the link: given up, and all is there once when it goes on."""
        layout = make_root(tmp_path)
        fill_journal(layout, 1, 1, 5)
        monkeypatch.setattr(postgres_db, "_PATIENCE_S", 1.0)
        [rows] = (event for event in read_events(layout) if isinstance(event, Rows))
        sink = sink_of(destination, layout)
        [backend] = destination.server.backends
        os.kill(backend, signal.SIGSTOP)
        try:
            sink.write(rows)
            with pytest.raises(SinkUnavailable, match="no answer for 1 s"):
                sink.tick(0.0)
            sink.close()
        finally:
            os.kill(backend, signal.SIGCONT)
        destination.carry(layout)
        assert destination.query("SELECT count(*) FROM trades") == [(5,)]
