"""A segment's bytes: what was written whole is read back, and nothing else ever passes for it."""

import os
import random
import struct
import tempfile
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import opened, trades, whole

from ingestor.errors import FormatTooNew
from ingestor.journal.records import (
    MAGIC,
    Header,
    Kind,
    Record,
    decode_reasons,
    decode_rows,
    decode_schema,
    encode_reasons,
    encode_schema,
    read_record,
)
from ingestor.metrics import Counts
from ingestor.schema import FORMAT_VERSION, TRADES

HEADER = Header(
    Kind.BLOCK, Counts(9, 6, 2, 1, 5, 3), 1 << 40, (7 << 40) + 3, 1_700_000_000_000_001, 1_700_000_000_000_009
)


def read(content: bytes, offset: int = 0, limit: int | None = None) -> Record | None:
    with opened(content) as fd:
        return read_record(fd, offset, limit)


class TestBasic:
    @given(st.binary(max_size=200))
    def test_a_record_is_read_as_it_was_written(self, body: bytes) -> None:
        content = whole(HEADER, body)
        assert read(b"\0" * 8 + content, 8) == Record(HEADER, body, 8, 8 + len(content))

    @given(st.binary(max_size=100))
    def test_the_next_record_begins_aligned(self, body: bytes) -> None:
        assert len(whole(HEADER, body)) % 8 == 0

    def test_rows_are_read_as_they_were_written(self) -> None:
        rows = trades(5, 1000)
        record = read(whole(HEADER, rows.serialize()))
        assert record is not None
        assert decode_rows(record, TRADES).equals(rows)

    def test_a_block_without_trades_has_no_body_and_no_rows(self) -> None:
        record = read(whole(HEADER, b""))
        assert record is not None
        assert decode_rows(record, TRADES).equals(trades(0, 0))

    def test_a_schema_is_read_with_a_feeds_own_columns(self) -> None:
        schema = TRADES.append(pa.field("trade_id", pa.int64()))
        record = read(b"".join(map(bytes, encode_schema(schema))))
        assert record is not None
        assert record.header.kind is Kind.SCHEMA
        assert decode_schema(record).equals(schema)

    def test_reasons_are_read_as_they_were_written(self) -> None:
        record = read(b"".join(map(bytes, encode_reasons({"bad_time": 2, "not_json": 1}))))
        assert record is not None
        assert (record.header.kind, decode_reasons(record)) == (Kind.REASONS, {"bad_time": 2, "not_json": 1})


class TestInvariants:
    def test_no_record_passes_with_one_bit_changed(self) -> None:
        body = trades(1, 2).serialize().to_pybytes()
        content = whole(HEADER, body)
        covered = len(content) - -len(body) % 8  # the padding says nothing
        with tempfile.TemporaryFile() as file:
            for bit in range(covered * 8):
                changed = bytearray(content)
                changed[bit // 8] ^= 1 << bit % 8
                os.pwrite(file.fileno(), changed, 0)
                assert read_record(file.fileno(), 0) is None, f"bit {bit}"

    def test_no_half_record_passes(self) -> None:
        content = whole(HEADER, b"0123456789abcdef")
        assert all(read(content[:cut]) is None for cut in range(len(content)))

    def test_zeros_do_not_pass(self) -> None:
        assert read(bytes(4096)) is None

    def test_a_record_with_a_zeroed_end_does_not_pass(self) -> None:
        content = whole(HEADER, b"0123456789abcdef")
        assert all(read(content[:cut] + bytes(len(content) - cut)) is None for cut in range(len(content)))

    def test_junk_does_not_pass_nor_cost_memory(self) -> None:
        dice = random.Random(1)
        with tempfile.TemporaryFile() as file:
            for _ in range(5000):
                junk = MAGIC + struct.pack("<HH", FORMAT_VERSION, Kind.BLOCK) + dice.randbytes(dice.randrange(200))
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), junk, 0)
                assert read_record(file.fileno(), 0) is None

    @pytest.mark.parametrize("length", [1, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 64) - 1])
    def test_a_length_beyond_the_file_is_no_record(self, length: int) -> None:
        content = bytearray(whole(HEADER, b""))
        content[16:24] = length.to_bytes(8, "little")
        assert read(bytes(content)) is None

    def test_a_record_is_not_read_beyond_the_limit(self) -> None:
        content = whole(HEADER, b"12345678")
        assert read(content, limit=len(content) - 1) is None
        assert read(content, limit=len(content)) is not None
        assert read(content, limit=0) is None


class TestKnownErrors:
    def test_a_record_of_a_later_format_is_refused(self) -> None:
        content = bytearray(whole(HEADER, b"from the future"))
        content[4:6] = (FORMAT_VERSION + 1).to_bytes(2, "little")
        content[8:12] = bytes(4)
        length = int.from_bytes(content[16:24], "little")
        head = len(whole(HEADER, b""))
        content[8:12] = zlib.crc32(bytes(content[: head + length])).to_bytes(4, "little")
        with pytest.raises(FormatTooNew, match=f"format {FORMAT_VERSION + 1}"):
            read(bytes(content))
