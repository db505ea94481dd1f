"""Frames as they came: every one of them, in order, with its connection and time, whatever became of it."""

import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blocks import AT_US, PING, frame
from journals import drain, make_root, read_events
from recorders import Rig, make_rig
from structlog.testing import capture_logs

from ingestor.config import Settings
from ingestor.dataset.arguments import Span
from ingestor.dataset.maintenance import delete_expired_frames
from ingestor.dataset.raw import list_raw_days, read_frames
from ingestor.dataset.verify import Verification
from ingestor.journal.follower import Rows
from ingestor.journal.records import Kind, encode_record, expand_frames, read_record, split_raw
from ingestor.layout import Layout
from ingestor.ledger import Ledger
from ingestor.parquet import add_checksums
from ingestor.schema import FORMAT_VERSION, FRAMES
from ingestor.sinks.parquet_files import ParquetFiles, RawFiles
from ingestor.sinks.segment_accounts import SegmentAccounts

_DAY_US = 86_400_000_000
_AT = datetime.fromtimestamp(AT_US / 1e6, UTC)
TODAY = _AT.date()
MIDNIGHT_US = (AT_US // _DAY_US + 1) * _DAY_US
HOSTILE = b"\x1b]0;owned\x07\xff\x00\xe2\x80\xae\r\n"


class Put(NamedTuple):
    connection: int
    payloads: list[bytes]
    at_us: int


PUTS = [
    Put(1, [frame({"p": 1.0}, {"s": "MSFT"}), PING, frame({"p": 2.0})], AT_US),
    Put(1, [HOSTILE, b"", frame({"p": -1})], AT_US + 500),
    Put(2, [frame({"p": 3.0})] * 2, AT_US + 2_000_000),
    Put(1, [PING], AT_US + 3_000_000),
]
"""Trades, notices, frames and trades that are refused, a frame without a byte, and two connections."""


def feed(rig: Rig, puts: list[Put]) -> None:
    """Each put as a block of its own."""
    for put in puts:
        rig.buffer.put(*put)
        block = rig.buffer.take(0.0, 0.0)
        assert block is not None
        rig.recorder._record(block)
    rig.journal.sync()


def start(root: Path, *, run: int = 1, keeps_frames: bool = True) -> Rig:
    rig = make_rig(root, "ws://127.0.0.1:9", run=run, keeps_frames=keeps_frames)
    told: dict[str, Any] = {"raw": True} if keeps_frames else {}
    rig.ledger.record(
        "run.started", format=FORMAT_VERSION, run=run, feed="finnhub", open_gaps=[], first_segment=run, **told
    )
    return rig


def stop(rig: Rig) -> SegmentAccounts:
    """The journal ends, and everything in it is sealed."""
    rig.buffer.close()
    rig.recorder.run()
    accounts = SegmentAccounts(rig.layout, rig.ledger, 0)
    drain(rig.layout, [accounts, RawFiles(rig.layout), ParquetFiles(rig.layout, rig.ledger)])
    assert rig.ledger.close()
    return accounts


def record(root: Path, puts: list[Put], *, run: int = 1) -> Layout:
    rig = start(root, run=run)
    feed(rig, puts)
    assert stop(rig).violations == 0
    return rig.layout


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """No test changes it."""
    return record(tmp_path_factory.mktemp("sealed"), PUTS)


@pytest.fixture
def layout(sealed: Layout, tmp_path: Path) -> Layout:
    """A copy of it."""
    return Layout(Path(shutil.copytree(sealed.root, tmp_path / "data", ignore=shutil.ignore_patterns("ballast"))))


def kept(layout: Layout, span: Span | None = None) -> list[Put]:
    """What is kept, a put per block."""
    found: dict[tuple[int, int], Put] = {}
    for table in read_frames(layout, span or Span(None, None)):
        assert table.schema == FRAMES
        for row in table.set_column(6, "received_at", table["received_at"].cast(pa.int64())).to_pylist():
            put = found.setdefault((row["run"], row["block"]), Put(row["connection"], [], row["received_at"]))
            assert row["frame"] == row["block"] + len(put.payloads)
            put.payloads.append(row["payload"])
    return list(found.values())


def differences(layout: Layout) -> list[str]:
    return [str(one) for step in Verification(layout).run() for one in step]


def test_every_frame_is_kept_as_it_came_sealed_or_not(tmp_path: Path) -> None:
    rig = start(tmp_path)
    feed(rig, PUTS)
    assert kept(rig.layout) == PUTS
    stop(rig)
    assert kept(rig.layout) == PUTS
    assert not list(rig.layout.journal.glob("*.journal"))
    verification = Verification(rig.layout)
    assert [one for step in verification.run() for one in step] == []
    assert verification.account.frames_kept == sum(len(put.payloads) for put in PUTS)
    assert "9 frames = 5 decoded + 2 rejected + 2 notices; 9 frames kept as they came" in str(verification.account)


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    rig = start(tmp_path, keeps_frames=False)
    feed(rig, PUTS)
    stop(rig)
    assert (kept(rig.layout), rig.layout.raw.exists(), differences(rig.layout)) == ([], False, [])
    assert Settings.model_validate({"tickers": ["AAPL"]}).storage.raw is None


def test_frames_of_several_runs_and_beyond_midnight(tmp_path: Path) -> None:
    late = [Put(1, [frame({"p": 1.0}), PING], MIDNIGHT_US - 1), Put(1, [PING, frame({"p": 2.0})], MIDNIGHT_US)]
    record(tmp_path, PUTS)
    layout = record(tmp_path, late, run=2)
    assert list_raw_days(layout) == [TODAY, TODAY + timedelta(days=1)]
    assert kept(layout) == [*PUTS, *late]
    assert differences(layout) == []


@pytest.mark.parametrize(
    ("span", "puts"),
    [
        (Span(None, AT_US // 1000 + 1), PUTS[:2]),
        (Span(AT_US // 1000 + 1, AT_US // 1000 + 3000), PUTS[2:3]),
        (Span(AT_US // 1000 + 3001, None), []),
    ],
)
def test_a_span_is_one_of_receipt(sealed: Layout, span: Span, puts: list[Put]) -> None:
    assert kept(sealed, span) == puts


def test_publishing_again_changes_nothing(layout: Layout) -> None:
    """As after a crash between the files and the commit."""
    [path] = layout.raw.glob("date=*/*.parquet")
    before = path.read_bytes()
    rig = start(layout.root, run=2)
    feed(rig, PUTS)
    rig.buffer.close()
    rig.recorder.run()
    for _ in range(2):
        drain(layout, [RawFiles(layout)])
        assert kept(layout) == PUTS * 2
    assert path.read_bytes() == before


def test_frames_whose_block_is_cut_off_count_as_little_as_its_rows(tmp_path: Path) -> None:
    rig = start(tmp_path)
    feed(rig, PUTS)
    path = rig.layout.open_segment(rig.journal.segment)
    sizes = [event.at.offset for event in read_events(rig.layout)]
    for size in range(path.stat().st_size - 1, sizes[-2], -40):
        copy = make_root(tmp_path / f"copy-{size}")
        (copy.journal / path.name).write_bytes(path.read_bytes()[:size])
        assert kept(copy) == PUTS[:-1]
        assert sum(event.counts.frames for event in read_events(copy) if isinstance(event, Rows)) == 8


def _places_of_frames(path: Path) -> list[int]:
    """Where the records of raw frames begin in a segment."""
    places, offset = [], 0
    with path.open("rb") as file:
        while record := read_record(file.fileno(), offset):
            if record.header.kind is Kind.FRAMES:
                places.append(offset)
            offset = record.end
    return places


def test_a_record_that_the_disk_changed_breaks_the_equation(tmp_path: Path) -> None:
    rig = start(tmp_path)
    feed(rig, PUTS)
    path = rig.layout.open_segment(rig.journal.segment)
    content = path.read_bytes()
    at = _places_of_frames(path)[1] + 100  # among the frames of the second block
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    rig.ledger.close()
    with capture_logs() as logs:
        assert stop(start(tmp_path, run=2)).violations == 1
    assert [one["equation"] for one in logs if one["event"] == "conservation.violated"] == [
        "frames received ≠ frames kept"
    ]
    assert kept(rig.layout) == [PUTS[0], *PUTS[2:]]
    assert [line.partition(": ")[2] for line in differences(rig.layout)] == [
        "6 frames kept; expected 9 (frames received)"
    ]


def test_frames_whose_block_the_disk_changed_are_not_those_of_the_next(tmp_path: Path) -> None:
    rig = start(tmp_path)
    feed(rig, PUTS)
    path = rig.layout.open_segment(rig.journal.segment)
    at = _places_of_frames(path)[1]
    with path.open("r+b") as file:  # from the end of the first block into the frames of the second
        file.seek(at - 20)
        file.write(b"\xff" * 120)
    rig.ledger.close()
    stop(start(tmp_path, run=2))
    assert kept(rig.layout) == PUTS[2:]


def _write_as_earlier(layout: Layout) -> None:
    """The segments of this root as recorders wrote them before frames were packed: as Arrow has them, in lz4."""
    for path in layout.journal.glob("*.journal"):
        pieces, offset = [], 0
        with path.open("rb") as file:
            while record := read_record(file.fileno(), offset):
                header, body, offset = record.header, record.body, record.end
                if header.kind is Kind.FRAMES:
                    head, data = split_raw(body)
                    rows = expand_frames(1, head.first_frame, head, data).select(["received_at", "payload"])
                    message = rows.serialize()
                    header = replace(header, kind=Kind.RAW)
                    body = struct.pack("<QQQQQQ", *head[:5], message.size)
                    body += pa.Codec("lz4_raw").compress(message, asbytes=True)
                pieces += encode_record(header, body)
        path.write_bytes(b"".join(map(bytes, pieces)))


def test_frames_of_an_earlier_journal_are_read_and_sealed(tmp_path: Path) -> None:
    rig = start(tmp_path)
    feed(rig, PUTS)
    rig.ledger.close()
    _write_as_earlier(rig.layout)
    assert kept(rig.layout) == PUTS
    assert stop(start(tmp_path, run=2)).violations == 0
    assert kept(rig.layout) == PUTS
    assert differences(rig.layout) == []


def test_files_of_earlier_recorders_are_read(layout: Layout) -> None:
    [path] = layout.raw.rglob("*.parquet")
    frames = pa.concat_tables(read_frames(layout))
    origin = pq.read_schema(path).metadata
    with pq.ParquetWriter(path, frames.schema.with_metadata(origin), write_page_checksum=True) as writer:
        writer.write_table(frames.replace_schema_metadata(origin))
    add_checksums(path)
    assert kept(layout) == PUTS
    assert kept(layout, Span(AT_US // 1000 + 1000, None)) == PUTS[2:]
    assert differences(layout) == []


def _drop_first(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.slice(1), path)


def _swap(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.take([1, 0, *range(2, table.num_rows)]), path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "0 frames kept; expected 9 (frames received)"),
    "a block less": (_drop_first, "6 frames kept; expected 9 (frames received)"),
    "another order": (_swap, "frames out of order"),
    "a bit": (_flip, "can't be read"),
    "another name": (
        lambda path: path.rename(path.with_name("000000000007-20261120T120000Z-r000001.parquet")),
        "of no segment that the ledger knows",
    ),
    "another date": (
        lambda path: path.parent.rename(path.parent.with_name("date=2026-11-01")),
        "frames of another date",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_wrong(layout: Layout, damage: str) -> None:
    [path] = layout.raw.glob("date=*/*.parquet")
    DAMAGES[damage][0](path)
    assert DAMAGES[damage][1] in " ".join(differences(layout))


class TestRetention:
    @pytest.fixture
    def ledger(self, layout: Layout) -> Iterator[Ledger]:
        ledger = Ledger(layout, 2, TODAY)
        yield ledger
        ledger.close()

    def test_days_of_frames_go_and_trades_stay(self, layout: Layout, ledger: Ledger) -> None:
        soon = _AT + timedelta(days=2)
        assert delete_expired_frames(layout, ledger, timedelta(days=2), soon) == []
        assert delete_expired_frames(layout, ledger, timedelta(days=1), soon) == [TODAY]
        assert (kept(layout), list_raw_days(layout), differences(layout)) == ([], [], [])
        assert any(layout.trades.glob("date=*/*.parquet"))

    def test_nothing_goes_on_one_clocks_word(self, layout: Layout, ledger: Ledger) -> None:
        with capture_logs() as logs:
            assert delete_expired_frames(layout, ledger, timedelta(days=300), _AT + timedelta(days=700)) == []
        assert "retention.waiting" in {one["event"] for one in logs}
        assert kept(layout) == PUTS
