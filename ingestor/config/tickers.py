"""The symbols to record, and how several recorders divide them."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from ingestor.config.section import Section
from ingestor.texts import is_visible

_TICKER_MAX = 64


def _parse_ticker(value: object) -> object:
    """The symbol as it is written. Raises ValueError with a sentence."""
    if fault := _ticker_fault(value):
        raise ValueError(fault)
    return value


def _ticker_fault(value: object) -> str | None:
    """What keeps this item from being a symbol. A blank inside doesn't: `IC MARKETS:1` is one."""
    if isinstance(value, Mapping) and len(value) == 1:
        return "a stray blank after the colon: write {}:{}".format(*next(iter(value.items())))
    if not isinstance(value, str) or not value:
        return "must be a symbol: text, one an item"
    if isinstance(value, _Repeated):
        return f"{value} is listed twice"
    if len(value) > _TICKER_MAX:
        return f"a symbol has at most {_TICKER_MAX} characters, this one {len(value)}"
    if "," in value or value != value.strip():
        return f"`{value}` holds a comma or ends in a blank: one symbol an item"
    return None if is_visible(value) else f"{value!r} holds a control or an invisible character"


class _Repeated(str):
    """A ticker that stands earlier in its list too."""

    __slots__ = ()


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
