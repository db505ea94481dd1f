"""Redis: what the contract of all sinks doesn't say. A real redis-server."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificate
from journals import Writer, make_root, read_events
from recorders import eventually
from recordings import Recording, make_recent, to_us
from servers import PASSWORD, RedisServer, free_ports
from sink_contract import EXTRA, ROOT, Redis, fill_journal

from ingestor.config.sections import RedisSettings
from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Rows
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.sinks.destinations import ExternalWorker
from ingestor.sinks.redis_db import RedisLive, RedisStreams

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Redis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    made = Redis(folder)
    yield made
    made.close()


@pytest.fixture
def client(place: Redis) -> Any:
    return place.server.client


def rows_of(layout: Layout) -> list[Rows]:
    return [event for event in read_events(layout) if isinstance(event, Rows)]


class TestStreams:
    def test_an_entry(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 3, schema=EXTRA)
        place.carry(layout)
        first = 1 << 40
        assert client.xrange("trades:BRK.B") == [
            (
                f"{first + 1}-0",
                {"timestamp": "1795176000001", "price": "107.77", "volume": "3.0", "conditions": "1,12",
                 "received_at": "1795176000000001", "repeated": "0", "trade_id": str(first + 1)},
            )
        ]  # fmt: skip
        assert client.xrange("trades:BINANCE:BTCUSDT")[0][1]["side"] == "buy"

    def test_a_stream_keeps_about_as_many_as_it_may(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 4, 3000)
        place.settings = RedisSettings(url=place.server.url, stream_max=500)
        place.carry(layout)
        assert 500 <= client.xlen("trades:AAPL") < 1000
        assert client.xrevrange("trades:AAPL", count=1)[0][0] == f"{(1 << 40) + 11999}-0"

    def test_an_older_state_is_caught_up_with(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        truth = fill_journal(layout, 2, 2, 10)
        place.carry(layout)
        client.flushall()  # as where it lost its disk
        place.carry(layout)
        assert place.rows().num_rows == truth.num_rows

    def test_rows_and_cursor_are_one_transaction(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 2, 10)
        first, second = rows_of(layout)
        sink = RedisStreams(place.settings, None, ROOT, layout)
        sink.write(first)
        sink.tick(0.0)
        sink.write(second)
        place.server.kill()
        with pytest.raises(SinkUnavailable, match="redis"):
            sink.tick(0.0)
        place.server.start()
        again = RedisStreams(place.settings, None, ROOT, layout)
        assert again.committed() == first.at
        assert sum(client.xlen(stream) for stream in client.scan_iter("trades:*")) == 10
        again.close()


class TestCoverage:
    @pytest.fixture
    def recording(self, tmp_path: Path) -> Recording:
        return make_recent(tmp_path / "data")

    def test_it_stands_beside_the_streams_and_follows_the_ledger(
        self, recording: Recording, place: Redis, client: Any
    ) -> None:
        first, second = (str(datetime.now(UTC).date() - timedelta(days)) for days in (2, 1))
        client.hset("coverage:A", str(datetime.now(UTC).date() - timedelta(33)), "[]")

        def told() -> dict[str, list[dict[str, str]]]:
            sink = RedisStreams(place.settings, None, ROOT, recording.layout)
            for event in read_events(recording.layout) if sink.committed() == Cursor(0, 0) else ():
                if isinstance(event, Rows):
                    sink.write(event)
            for _ in range(100):  # a date per tick, up to today
                sink.tick(0.0)
            sink.close()
            return {day: json.loads(text) for day, text in client.hgetall("coverage:A").items()}

        whole = told()
        assert sorted(whole) == [first, second]
        assert whole[first] == [
            {"start": f"{first}T00:00:00+00:00", "end": f"{second}T00:00:00+00:00", "state": "recorded"}
        ]
        since, until = f"{first}T23:00", f"{second}T01:00"
        recording.fact("gap.opened", f"{second}T00:30", gap="1", cause="stall", since=to_us(since), symbol=None)
        recording.fact("gap.closed", until, gap="1", cause="stall", until=to_us(until), symbol=None)
        states = {day: [(one["state"], one.get("cause")) for one in pieces] for day, pieces in told().items()}
        assert states[first] == [("recorded", None), ("blind", "stall")]
        assert states[second][0] == ("blind", "stall")

    def test_where_it_is_refused_trades_still_come(self, recording: Recording, place: Redis, client: Any) -> None:
        client.acl_setuser(
            "trades", enabled=True, nopass=True, keys=["ingestor:*", "trades:*"], channels=["*"], commands=["+@all"]
        )
        place.settings = RedisSettings(url=place.settings.url.replace("//", "//trades@"), stream_max=1000)
        place.carry(recording.layout)
        assert place.rows().num_rows == 1
        assert not client.exists("coverage:A")


class TestKnownErrors:
    @pytest.mark.parametrize("foreign", ["a stream", "another type"])
    def test_a_stream_that_is_not_ours(self, tmp_path: Path, place: Redis, client: Any, foreign: str) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 10)
        if foreign == "a stream":
            client.xadd("trades:AAPL", {"price": 1}, "9000000000000000-0")
        else:
            client.set("trades:AAPL", "text")
        sink = RedisStreams(place.settings, None, ROOT, layout)
        sink.write(rows_of(layout)[0])
        with pytest.raises(SinkUnavailable, match=r"trades:AAPL|WRONGTYPE"):
            sink.tick(0.0)
        assert sink.committed() == Cursor(0, 0)
        sink.close()

    @pytest.mark.parametrize("foreign", ["a stream", "another type"])
    def test_what_is_refused_within_a_transaction_is_sent_again(
        self, tmp_path: Path, place: Redis, client: Any, foreign: str
    ) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 2, 1, 10)
        sink = RedisStreams(place.settings, None, ROOT, layout)
        first, second = rows_of(layout)
        sink.write(first)
        sink.tick(0.0)
        place_before = sink.committed()
        sink.write(second)
        client.delete("trades:AAPL")  # after its stream was looked at
        if foreign == "a stream":
            client.xadd("trades:AAPL", {"price": 1}, "9000000000000000-0")
        else:
            client.set("trades:AAPL", "text")
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match=r"trades:AAPL|WRONGTYPE|equal or smaller"):
                sink.tick(0.0)
            assert sink.committed() == place_before
            sink.close()
            sink = RedisStreams(place.settings, None, ROOT, layout)
            assert sink.committed() == place_before
            sink.write(second)
        client.delete("trades:AAPL")
        sink.close()
        sink = RedisStreams(place.settings, None, ROOT, layout)
        sink.write(second)
        sink.tick(0.0)
        sink.close()
        symbols = second.batch.column("symbol").to_pylist()
        for symbol in set(symbols):
            sequences = [
                sequence
                for sequence, one in zip(second.batch.column("sequence").to_pylist(), symbols, strict=True)
                if one == symbol
            ]
            found = [int(id_.partition("-")[0]) for id_, _ in client.xrange(f"trades:{symbol}")]
            assert found[-len(sequences) :] == sequences

    def test_a_server_that_has_no_room_takes_nothing(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 10)
        client.config_set("maxmemory", "1mb")
        sink = RedisStreams(place.settings, None, ROOT, layout)
        sink.write(rows_of(layout)[0])
        with pytest.raises(SinkUnavailable, match="memory"):
            sink.tick(0.0)
        sink.close()
        client.config_set("maxmemory", "0")
        place.carry(layout)
        assert place.rows().num_rows == 10

    def test_what_to_do_about_a_refusal(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 10)
        client.acl_setuser("weak", enabled=True, nopass=True, keys=["ingestor:*"], commands=["+@all"])
        for refused, served, user, advice in (
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "", "of the primary"),
            ("CONFIG SET maxmemory 1mb", "CONFIG SET maxmemory 0", "", "stream_max"),
            ("SET trades:AAPL text", "DEL trades:AAPL", "", "delete the"),
            ("PING", "PING", "weak@", "let its user read and write"),
        ):
            client.execute_command(*refused.split())
            sink = RedisStreams(RedisSettings(url=place.settings.url.replace("//", f"//{user}")), None, ROOT, layout)
            sink.write(rows_of(layout)[0])
            with pytest.raises(SinkUnavailable, match=advice):
                sink.tick(0.0)
            sink.close()
            client.execute_command(*served.split())
        place.carry(layout)
        assert place.rows().num_rows == 10

    def test_nobody_there(self, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        settings = RedisSettings(url=f"redis://127.0.0.1:{port}")
        with pytest.raises(SinkUnavailable):
            RedisStreams(settings, None, ROOT, Layout(tmp_path))
        with pytest.raises(SinkUnavailable):
            RedisLive(settings, None)


class TestAccess:
    def test_the_password(self, tmp_path: Path) -> None:
        server = RedisServer(tmp_path, "--requirepass", PASSWORD)
        try:
            settings = RedisSettings(url=server.url)
            RedisStreams(settings, PASSWORD, ROOT, Layout(tmp_path)).close()
            for wrong in (None, "not " + PASSWORD):
                with pytest.raises(SinkUnavailable, match="REDIS_PASSWORD") as caught:
                    RedisStreams(settings, wrong, ROOT, Layout(tmp_path))
                assert PASSWORD not in str(caught.value)
        finally:
            server.close()

    @pytest.mark.needs("openssl")
    def test_tls(self, tmp_path: Path) -> None:
        ours, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
        (port,) = free_ports(1)
        server = RedisServer(
            tmp_path, "--tls-port", str(port), "--tls-cert-file", str(ours.certificate), "--tls-key-file",
            str(ours.key), "--tls-auth-clients", "no",
        )  # fmt: skip
        try:
            url = f"rediss://127.0.0.1:{port}"
            RedisStreams(RedisSettings(url=url, ca_file=ours.certificate), None, ROOT, Layout(tmp_path)).close()
            RedisStreams(
                RedisSettings(url=server.url, ca_file=ours.certificate), None, ROOT, Layout(tmp_path)
            ).close()  # without TLS
            with pytest.raises(SinkUnavailable, match="certificate"):
                RedisStreams(RedisSettings(url=url, ca_file=other.certificate), None, ROOT, Layout(tmp_path))
        finally:
            server.close()


class TestLive:
    def test_the_last_price_and_every_publication(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        fill_journal(layout, 1, 1, 6)
        listener = client.pubsub()
        listener.psubscribe("stock:*")
        assert listener.get_message(timeout=5)["type"] == "psubscribe"
        sink = RedisLive(place.settings, None)
        sink.write(rows_of(layout)[0])
        sink.close()
        heard = [listener.get_message(timeout=5) for _ in range(6)]
        listener.close()
        assert json.loads(client.get("stock:BRK.B")) == {
            "symbol": "BRK.B", "price": 107.8, "volume": 6.0, "timestamp": 1795176000004,
        }  # fmt: skip
        assert [message["channel"] for message in heard] == [
            "stock:BINANCE:BTCUSDT", "stock:BRK.B", "stock:AAPL",
        ] * 2  # fmt: skip
        assert heard[4]["data"] == client.get("stock:BRK.B")

    def test_it_begins_now_and_does_not_wait_for_the_disk(self, tmp_path: Path, place: Redis, client: Any) -> None:
        layout = make_root(tmp_path / "root")
        writer, stop = Writer(layout), threading.Event()
        writer.append(3)
        opened = threading.Event()

        def open_live(start: Cursor) -> RedisLive:
            opened.set()
            return RedisLive(place.settings, None)

        thread = threading.Thread(target=ExternalWorker(layout, "redis_live", open_live, stop, view=True).run)
        thread.start()
        assert opened.wait(30)
        eventually(lambda: _follows(writer, client), "a price of what is not synced")
        stop.set()
        thread.join()
        assert json.loads(client.get("stock:AAPL"))["timestamp"] >= 1795176000000
        assert not layout.cursor_file("redis_live").exists()


def _follows(writer: Writer, client: Any) -> bool:
    """Whether a trade that was appended, and is not synced, has come."""
    writer.append(3)
    return client.get("stock:AAPL") is not None
