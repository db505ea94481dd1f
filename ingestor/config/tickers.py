"""Tickers: the symbols to record, and how several recorders divide them between shards."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from ingestor.config.types import Section
from ingestor.texts import is_visible

_TICKER_MAX = 64


class _Repeated(str):
    """A ticker that stands earlier in its list too."""

    __slots__ = ()


def _parse_ticker(value: object) -> object:
    """The symbol as it is written: a blank inside is part of it (`IC MARKETS:1`). Raises ValueError with a sentence."""
    if isinstance(value, Mapping) and len(value) == 1:
        exchange, name = next(iter(value.items()))
        raise ValueError(f"a stray blank after the colon: write {exchange}:{name}")
    if not isinstance(value, str) or not value:
        raise ValueError("must be a symbol: text, one an item")
    if isinstance(value, _Repeated):
        raise ValueError(f"{value} is listed twice")  # noqa: TRY004  pydantic catches ValueError alone
    if len(value) > _TICKER_MAX:
        raise ValueError(f"a symbol has at most {_TICKER_MAX} characters, this one {len(value)}")
    if "," in value or value != value.strip():
        raise ValueError(f"`{value}` holds a comma or ends in a blank: one symbol an item")
    if not is_visible(value):
        raise ValueError(f"{value!r} holds a control or an invisible character")
    return value


def _mark_repeats(value: object) -> object:
    """Marks what is listed twice, to be refused in its own place. Raises ValueError unless it is a list."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of at least one symbol: [AAPL], or a line `- AAPL` for each")
    seen: set[str] = set()
    marked: list[object] = []
    for item in value:
        marked.append(_Repeated(item) if isinstance(item, str) and item in seen else item)
        seen.update([item] if isinstance(item, str) else [])
    return marked


Ticker = Annotated[
    str,
    BeforeValidator(_parse_ticker),
    # An editor reads `000001`, `ON` and `NULL` as something else than text; the recorder doesn't.
    WithJsonSchema({"type": ["string", "number", "boolean", "null"], "maxLength": _TICKER_MAX}),
]
Tickers = Annotated[tuple[Ticker, ...], BeforeValidator(_mark_repeats)]


class ShardSettings(Section):
    """One of several recorders that divide the tickers between them."""

    index: Annotated[int, Field(ge=1, le=1000)] = Field(description="which of them this is, from 1")
    count: Annotated[int, Field(ge=1, le=1000)] = Field(description="how many there are")

    @field_validator("count")
    @classmethod
    def _not_below_index(cls, count: int, info: ValidationInfo) -> int:
        if count < info.data.get("index", 1):
            raise ValueError("must be at least `index`, which counts from 1")
        return count


def symbols_of_shard(symbols: Sequence[str], index: int, count: int) -> tuple[str, ...]:
    """Those of `symbols` that the shard `index` of `count` records, in their order. Shards count from 1.

    Pure, and the same on every machine and in every version. Each symbol has one shard. Another symbol changes nothing
    for the others, and one more shard takes from each of the others about 1/(count + 1) of what it has: rendezvous
    hashing.
    """
    return tuple(symbol for symbol in symbols if shard_of(symbol, count) == index)


def shard_of(symbol: str, count: int) -> int:
    """The shard of a symbol, 1 to `count`: the one that has drawn the highest number for it."""
    return max(
        range(1, count + 1), key=lambda shard: hashlib.blake2b(f"{shard}/{symbol}".encode(), digest_size=8).digest()
    )
