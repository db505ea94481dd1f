"""The limit: what no recorder of this kind can go below on this machine. CPU µs a trade, of three parts.

    python benchmarks/limit.py receive URL
    python benchmarks/limit.py decode FOLDER FRAME_SIZE
    python benchmarks/limit.py write FOLDER

`receive` reads the bytes and discards them; `decode` turns frames that are already joined into Arrow columns, and does
nothing else (no fence, no check, one thread); `write` writes ready, sorted trades with all eight columns as a Parquet
file. Added up they leave out whatever makes a recorder: frames, receive times, validation, journal, checksums, sort.

Prints `{"trades": …, "cpu_s": …}` of the part itself, start-up and preparation left out.
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json
from trade_load import PART_TRADES, part_path

from ingestor.capture.connection import scan_text_frames
from ingestor.parquet import sort_trades, write_parquet
from ingestor.schema import RECEIVED_AT, TRADES

_BLOCK = 8192
_PARTS = 10
_READ = 1 << 18
_TRADE = pa.struct(
    {"c": pa.list_(pa.string()), "p": pa.float64(), "s": pa.string(), "t": pa.int64(), "v": pa.float64()}
)
_FRAME = pa.schema({"data": pa.list_(_TRADE), "type": pa.string()})


def main(part: str, *arguments: str) -> None:
    trades, cpu_s = _PARTS_OF_IT[part](*arguments)
    print(json.dumps({"trades": trades, "cpu_s": cpu_s}))


def receive(url: str) -> tuple[int, float]:
    """Read and discard; how many trades that was the caller knows."""
    parts = urlsplit(url)
    venue = socket.create_connection((parts.hostname, parts.port))
    venue.sendall(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
    venue.recv(_READ)
    venue.sendall(b"\x81\x82\0\0\0\0{}")
    began_s = time.process_time()
    tail = b""
    while tail != b"\x89\x00":  # the ping behind the last trade
        data = venue.recv(_READ)
        if not data:
            raise ConnectionError("the venue left before its ping")
        tail = (tail + data[-2:])[-2:]
    used_s = time.process_time() - began_s
    venue.sendall(b"\x8a\x80\0\0\0\0\x88\x80\0\0\0\0")  # a pong, and goodbye
    return 0, used_s


def decode(folder: str, frame_size: str) -> tuple[int, float]:
    """The load as columns, a block at a time, each dropped at once."""
    blocks = [block for part in range(_PARTS) for block in joined(Path(folder), int(frame_size), part)]
    began_s = time.process_time()
    for block in blocks:
        read_columns(block)
    return _PARTS * PART_TRADES, time.process_time() - began_s


def write(folder: str) -> tuple[int, float]:
    """One file, as a segment's, of half a million trades."""
    blocks = [read_columns(block) for part in range(_PARTS) for block in joined(Path(folder), 10, part)]
    columns = [pa.concat_arrays(column) for column in zip(*blocks, strict=True)]
    trades = len(columns[0])
    received_at = pa.array(range(1_800_000_000_000_000, 1_800_000_000_000_000 + trades)).cast(RECEIVED_AT)
    columns += [received_at, pa.arange(0, trades), pa.repeat(False, trades)]
    rows = sort_trades(
        pa.Table.from_arrays([column.cast(to) for column, to in zip(columns, TRADES.types, strict=True)], schema=TRADES)
    )
    with tempfile.TemporaryDirectory() as directory:
        began_s = time.process_time()
        write_parquet(Path(directory, "limit.parquet"), rows, "limit")
        return trades, time.process_time() - began_s


def joined(folder: Path, frame_size: int, part: int) -> list[bytes]:
    """A part's frames as blocks of lines."""
    payloads, _ = scan_text_frames(part_path(folder, frame_size, part).read_bytes())
    return [b"\n".join(payloads[at : at + _BLOCK]) for at in range(0, len(payloads), _BLOCK)]


def read_columns(block: bytes) -> list[pa.Array]:
    """timestamp, symbol, price, volume, conditions."""
    read = ReadOptions(use_threads=False, block_size=len(block) + 1)
    table = read_json(pa.BufferReader(block), read, ParseOptions(explicit_schema=_FRAME))
    items = table["data"].combine_chunks().flatten()
    codes = pc.binary_join(items.field("c"), ",")
    return [items.field("t"), items.field("s"), items.field("p"), items.field("v"), codes]


_PARTS_OF_IT: dict[str, Callable[..., tuple[int, float]]] = {"receive": receive, "decode": decode, "write": write}

if __name__ == "__main__":
    main(*sys.argv[1:])
