"""Reading what was refused: as it was written, with the bytes that came."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ingestor
from ingestor.capture.rejects import Refused, Rejects
from ingestor.errors import NotARecording
from ingestor.layout import Layout

RAW = b'{"type":"trade","data":[{"p":-1}]}\xff'


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    layout = Layout(tmp_path)
    layout.create()
    rejects = Rejects(layout, 3, 1 << 20)
    rejects.write([Refused(7, None, "not JSON", us("2026-11-19T23:59:59"), RAW)])
    rejects.write(
        [
            Refused(9, 2, "price", us("2026-11-20T10:00:00"), b"x"),
            Refused(8, 0, "time", us("2026-11-20T09:00:00"), b"y"),
        ]
    )
    rejects.close()
    return tmp_path


def test_in_order_of_receipt_with_the_bytes_that_came(root: Path) -> None:
    frame = ingestor.read_rejects(root)
    assert frame["reason"].to_list() == ["not JSON", "time", "price"]
    first = frame.iloc[0]
    assert (first["run"], first["frame"], first["length"]) == (3, 7, len(RAW))
    assert first["text"].encode("latin-1") == RAW
    assert first["sha256"] == hashlib.sha256(RAW).hexdigest()
    assert frame["trade"].isna().to_list() == [True, False, False]


def test_a_span_in_a_zone(root: Path) -> None:
    frame = ingestor.read_rejects(root, "2026-11-20T04:00", "2026-11-20T05:00", tz="America/New_York")
    assert frame["frame"].to_list() == [8]
    assert str(frame["received_at"].dtype) == "datetime64[us, America/New_York]"


def test_a_line_that_is_cut_or_under_way_is_passed_over(root: Path) -> None:
    path = root / "rejects/date=2026-11-20.jsonl"
    with path.open("ab") as file:
        file.write(b'{"run":3,"fra\n{"run":3')
    assert len(ingestor.read_rejects(root)) == 3


def test_those_that_were_only_counted_are_left_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    rejects = Rejects(layout, 1, 1)
    for frame in range(3):
        rejects.write([Refused(frame, None, "not_json", us("2026-11-20T09:00:00"), RAW)])
    rejects.close()
    assert ingestor.read_rejects(tmp_path, engine="arrow")["frame"].to_pylist() == [0]


def test_none(tmp_path: Path) -> None:
    Layout(tmp_path).create()
    assert len(ingestor.read_rejects(tmp_path)) == 0
    with pytest.raises(NotARecording):
        ingestor.read_rejects(tmp_path / "nowhere")
