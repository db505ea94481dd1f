"""Makes the load: trades as a busy venue sends them, encoded as WebSocket text frames, ready to be sent as they are.

    python benchmarks/trade_load.py FOLDER --trades 500000

`FOLDER/<trades a frame>/<part>.frames` holds PART_TRADES trades each; `FOLDER/load.json` says the total volume of
each part, so that what a contender has written can be held to it. The same trades are in every frame size. The load
is the same each time: 50 symbols whose activity falls off as 1/rank, prices that walk by cents, whole volumes, codes
as on the US tape.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

PART_TRADES = 50_000
FRAME_SIZES = (1, 5, 10)
SYMBOLS = [f"{letter}{suffix}" for letter in "ABCDEFGHIJ" for suffix in ("APL", "MZN", "TSLA", "NVD", "RK.B")]
CODES: tuple[list[str], ...] = (["1"], ["1", "12"], ["1", "8", "24"], [], ["1", "4", "9"])
_CODE_WEIGHTS = (50, 35, 8, 5, 2)
_TRADES_PER_MS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the load.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trades", type=int, required=True, help=f"a multiple of {PART_TRADES}")
    arguments = parser.parse_args()
    write_load(arguments.folder, arguments.trades, int(time.time() * 1000))


def write_load(folder: Path, trades: int, start_ms: int) -> None:
    """Write so many trades, in parts, in every frame size. `start_ms` is the time of the first trade."""
    random = Random(20_261_120)
    prices = {symbol: random.randint(2_000, 60_000) for symbol in SYMBOLS}
    volumes = []
    for size in FRAME_SIZES:
        (folder / str(size)).mkdir(parents=True, exist_ok=True)
    for part in range(trades // PART_TRADES):
        texts, volume = make_trades(random, prices, start_ms + part * PART_TRADES // _TRADES_PER_MS)
        volumes.append(volume)
        for size in FRAME_SIZES:
            part_path(folder, size, part).write_bytes(b"".join(frames(texts, size)))
    (folder / "load.json").write_text(json.dumps({"volumes": volumes}))


def part_path(folder: Path, frame_size: int, part: int) -> Path:
    return folder / str(frame_size) / f"{part:04}.frames"


def make_trades(random: Random, prices: dict[str, int], start_ms: int) -> tuple[list[str], int]:
    """PART_TRADES trades as JSON, and their total volume. `prices` (in cents) walk on."""
    symbols = random.choices(SYMBOLS, [1 / rank for rank in range(1, len(SYMBOLS) + 1)], k=PART_TRADES)
    codes = random.choices([json.dumps(one, separators=(",", ":")) for one in CODES], _CODE_WEIGHTS, k=PART_TRADES)
    steps = random.choices((-2, -1, 0, 0, 0, 1, 2), k=PART_TRADES)
    volumes = random.choices((1, 2, 5, 10, 25, 100, 100, 200, 300, 1500), k=PART_TRADES)
    texts = []
    for index, (symbol, code, step, volume) in enumerate(zip(symbols, codes, steps, volumes, strict=True)):
        prices[symbol] = cents = max(100, prices[symbol] + step)
        time_ms = start_ms + index // _TRADES_PER_MS
        texts.append(f'{{"c":{code},"p":{cents / 100},"s":"{symbol}","t":{time_ms},"v":{volume}}}')
    return texts, sum(volumes)


def frames(texts: list[str], size: int) -> Iterator[bytes]:
    """Text frames of `size` trades each, as a server sends them: unmasked, in one piece."""
    for start in range(0, len(texts), size):
        yield encode_frame(f'{{"data":[{",".join(texts[start : start + size])}],"type":"trade"}}'.encode())


def encode_frame(payload: bytes, opcode: int = 1) -> bytes:
    """One whole frame from a server (RFC 6455, 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    return bytes((0x80 | opcode, 126)) + length.to_bytes(2) + payload


if __name__ == "__main__":
    main()
