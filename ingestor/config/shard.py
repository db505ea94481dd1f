"""Which of several recorders records which symbol. Pure, and the same on every machine and in every version."""

import hashlib
from collections.abc import Sequence


def symbols_of_shard(symbols: Sequence[str], index: int, count: int) -> tuple[str, ...]:
    """Those of `symbols` that the shard `index` of `count` records, in their order. Shards count from 1.

    Each symbol has one shard. Another symbol changes nothing for the others, and one more shard takes from each of
    the others about 1/(count + 1) of what it has: rendezvous hashing.
    """
    return tuple(symbol for symbol in symbols if shard_of(symbol, count) == index)


def shard_of(symbol: str, count: int) -> int:
    """The shard of a symbol, 1 to `count`: the one that has drawn the highest number for it."""
    return max(range(1, count + 1), key=lambda shard: _draw(symbol, shard))


def _draw(symbol: str, shard: int) -> bytes:
    return hashlib.blake2b(f"{shard}/{symbol}".encode(), digest_size=8).digest()
