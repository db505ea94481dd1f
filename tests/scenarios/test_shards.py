"""The worked example of docs/scale.md: three recorders divide one venue, and send what they record into
one topic, of which a broker is lost, and one dataset in an object store.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from documents import REPOSITORY, blocks, read, split_sections
from harness import Recorder, Site, Tally, compare, read_parquet, running_venue
from pyarrow import fs as pafs
from servers import KafkaCluster, S3Server
from sink_contract import TopicReader

from ingestor.config import load_settings
from ingestor.config.sections import symbols_of_shard
from ingestor.config.yaml_file import read_yaml
from ingestor.journal.records import Cursor
from ingestor.layout import Layout
from ingestor.schema import TRADES
from ingestor.sinks.retention_slots import Lags, name_root, read_place

pytestmark = pytest.mark.alone

EXAMPLE = REPOSITORY / "config/shards.yaml"
SHARDS = 3
BROKERS = 3
TOPIC = "trades.finnhub"
CARRIED = ("kafka", "object_store")
KEYS = ["root", "sequence"]
"""What tells a row of several recorders."""


def shown(language: str) -> str:
    """The block in this language of its section."""
    section = split_sections(read("docs/scale.md"))["Divide symbols between machines"]
    (block,) = blocks(section, language)
    return block


@pytest.fixture
def kafka() -> Iterator[KafkaCluster]:
    with closing(KafkaCluster(BROKERS)) as made:
        made.create(TOPIC)
        yield made


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    (tmp_path / "s3").mkdir()
    made = S3Server(tmp_path / "s3")
    yield made
    made.close()


def test_the_docs_show_the_example(tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(shown("yaml"))
    assert load_settings(tmp_path / "shown.yaml") == load_settings(EXAMPLE)


@pytest.mark.long
@pytest.mark.needs("weed")
def test_three_recorders_one_topic_one_dataset(tmp_path: Path, kafka: KafkaCluster, s3: S3Server, tally: Tally) -> None:
    with running_venue(tmp_path, "--rate", "5000", "--any-key") as venue, ExitStack() as stack:
        topic = stack.enter_context(closing(TopicReader(kafka.brokers, TOPIC)))
        sites = [site_of(tmp_path, shard, venue.url, kafka, s3) for shard in range(1, SHARDS + 1)]
        recorders = [stack.enter_context(site.running()) for site in sites]
        wait_for_progress(recorders)
        tally.note = f"broker {kafka.lose_leader(TOPIC)} lost"
        wait_for_progress(recorders)
        truth = venue.stop()
        for recorder in recorders:
            recorder.wait_for_end_of_stream()
            recorder.wait_for(partial(is_carried, recorder.site.layout), "Kafka at the journal's end")
            assert recorder.end() == 0, recorder.log
        messages = topic.read_to_end()
    recorded = pa.concat_tables([recorded_by(site) for site in sites]).sort_by([(key, "ascending") for key in KEYS])
    tally.rounds, tally.rows = 1, recorded.num_rows
    check_recordings(truth, sites, recorded)
    check_dataset(s3.uri, tmp_path / "copy", recorded)
    repeats = check_topic(messages, recorded)
    tally.note += f", {repeats} messages repeated"


def site_of(folder: Path, shard: int, url: str, kafka: KafkaCluster, s3: S3Server) -> Site:
    """The example on one of the machines: with its index, its key, and the addresses of this test."""
    settings: dict[str, Any] = dict(read_yaml(EXAMPLE).data)
    settings["shard"] = {**settings["shard"], "index": shard}
    settings["storage"] = {"formats": ["parquet"]}
    options = {"message.timeout.ms": "10000", "socket.timeout.ms": "2000", "topic.metadata.refresh.interval.ms": "200"}
    sinks = settings["sinks"]
    settings["sinks"] = {
        "kafka": {**sinks["kafka"], "brokers": kafka.brokers, "options": options},
        "object_store": {**sinks["object_store"], "uri": s3.uri},
    }
    machine = folder / f"machine-{shard}"
    machine.mkdir()
    return Site(machine, machine / "data", url, key=f"key-of-shard-{shard}", settings=settings)


def wait_for_progress(recorders: Sequence[Recorder]) -> None:
    """Each has brought more to both destinations."""
    before = [places(recorder.site.layout) for recorder in recorders]
    for recorder, then in zip(recorders, before, strict=True):
        recorder.wait_for(partial(is_beyond, recorder.site.layout, then), "more in the topic and in the dataset")


def places(layout: Layout) -> list[Cursor]:
    return [read_place(layout, sink) for sink in CARRIED]


def is_beyond(layout: Layout, places_then: list[Cursor]) -> bool:
    return all(now > then for now, then in zip(places(layout), places_then, strict=True))


def is_carried(layout: Layout) -> bool:
    return Lags(layout, ["kafka"]).look()["kafka"].rows == 0


def recorded_by(site: Site) -> pa.Table:
    """The rows of one recorder, and its root's name."""
    rows = read_parquet(site.layout)
    return rows.append_column("root", pa.repeat(name_root(site.layout), rows.num_rows))


def check_recordings(truth: pa.Table, sites: Sequence[Site], recorded: pa.Table) -> None:
    """Together they are the truth; each has its own symbols, and they number their rows alike."""
    comparison = compare(truth, recorded)
    assert (comparison.missing, comparison.invented, comparison.holes) == ([], 0, 0)
    assert recorded.num_rows == truth.num_rows > 1000
    tickers = load_settings(EXAMPLE).tickers
    for shard, site in enumerate(sites, 1):
        symbols = set(read_parquet(site.layout)["symbol"].to_pylist())
        assert symbols == set(symbols_of_shard(tickers, shard, SHARDS))
    numbers, keys = (recorded.group_by(names).aggregate([]).num_rows for names in (["sequence"], KEYS))
    assert numbers < keys == recorded.num_rows, "a sequence number alone tells no row of several roots"


def check_dataset(uri: str, copy: Path, recorded: pa.Table) -> None:
    """The shared place is one dataset, with each row once, to pyarrow and to the query shown."""
    files, place = pafs.FileSystem.from_uri(uri)
    found = pads.dataset(place, filesystem=files, partitioning="hive").to_table()
    assert in_order(found).equals(in_order(recorded))
    pafs.copy_files(place, str(copy), source_filesystem=files)
    query = shown("sql").replace("s3://my-bucket/trades", str(copy))
    with duckdb.connect() as database:
        counted = database.execute(query).fetchall()
    assert Counter(dict(counted)) == Counter(recorded["symbol"].to_pylist())


def in_order(rows: pa.Table) -> pa.Table:
    """The rows in one order and one form, whatever files they were in."""
    columns = {name: rows[name].cast(TRADES.field(name).type) for name in TRADES.names}
    return pa.table({**columns, "root": rows["root"].cast(pa.string())}).sort_by([(key, "ascending") for key in KEYS])


def check_topic(messages: Sequence[Any], recorded: pa.Table) -> int:
    """The topic has each row at least once, told by its headers alone; how many are there again."""
    headers = [{name: value.decode() for name, value in message.headers()} for message in messages]
    found = pa.table(
        {
            "root": [one["root"] for one in headers],
            "sequence": [int(one["sequence"]) for one in headers],
            "symbol": [message.key().decode() for message in messages],
        }
    )
    once = found.group_by([*KEYS, "symbol"]).aggregate([]).sort_by([(key, "ascending") for key in KEYS])
    assert once.select([*KEYS, "symbol"]).equals(recorded.select([*KEYS, "symbol"]))
    return int(found.num_rows - once.num_rows)
