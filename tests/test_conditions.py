"""Which print moves what: the table of the rules, code by code, and the columns held against it row by row."""

import itertools

import pyarrow as pa
import pytest
from documents import read

from ingestor.dataset.market_rules import Circumstance, Moves, judge, judge_rows

REGULAR = Circumstance(regular_hours=True, daily_bar=False)
OUTSIDE = Circumstance(regular_hours=False, daily_bar=False)
DAILY = Circumstance(regular_hours=True, daily_bar=True)

ALL = Moves(high_low=True, last=True, volume=True)
VOLUME_ONLY = Moves(high_low=False, last=False, volume=True)
NOTHING = Moves(high_low=False, last=False, volume=False)
HIGH_LOW = Moves(high_low=True, last=False, volume=True)
PRICES = Moves(high_low=True, last=True, volume=False)

RULES = {
    **dict.fromkeys(range(1, 42), ALL),
    **dict.fromkeys((3, 5, 10, 11, 12, 17, 22, 24, 25, 26, 37), VOLUME_ONLY),
    **dict.fromkeys((16, 20), NOTHING),
    **dict.fromkeys((9, 15, 18, 21, 30, 32), HIGH_LOW),
}


def test_the_docs_name_each_code_where_it_belongs() -> None:
    section = read("docs/reference/columns.md").partition("## Conditions of US stocks\n")[2]
    moved = {"Everything": ALL, "Volume only": VOLUME_ONLY, "High, low and volume": HIGH_LOW, "Nothing": NOTHING}
    told: dict[int, Moves | None] = {}
    for entry in section.split("\n- **")[1:]:
        title, _, rest = " ".join(entry.split()).partition("**")
        codes = [int(one.split()[0]) for one in rest.partition(": ")[2].split("; ")]
        told.update(dict.fromkeys(codes, moved.get(title)))
    assert told == {code: moves for code, moves in RULES.items() if code != 39} | {39: None}
    assert judge("39", REGULAR) == NOTHING
    assert judge("39", DAILY) == PRICES


@pytest.mark.parametrize("code", range(1, 42))
def test_each_code(code: int) -> None:
    usual = RULES[code]
    assert judge(str(code), REGULAR) == (NOTHING if code == 39 else usual)
    assert judge(str(code), DAILY) == (PRICES if code == 39 else usual)
    assert judge(str(code), OUTSIDE) == (ALL if code == 24 else NOTHING if code == 39 else usual)


@pytest.mark.parametrize("conditions", [None, "", "1", "1,8", "99", "unknown"])
def test_what_no_rule_names_moves_everything(conditions: str | None) -> None:
    assert judge(conditions, REGULAR) == ALL


@pytest.mark.parametrize("where", [REGULAR, OUTSIDE, DAILY])
def test_of_several_codes_each_must_allow_it(where: Circumstance) -> None:
    for first, second in itertools.combinations(range(1, 42), 2):
        one, other = judge(str(first), where), judge(str(second), where)
        together = Moves(*(a and b for a, b in zip(one, other, strict=True)))
        assert judge(f"{first},{second}", where) == together


def test_12_is_not_found_in_2_nor_2_in_12() -> None:
    assert judge("2", REGULAR) == ALL
    assert judge("1,24,12", OUTSIDE) == VOLUME_ONLY


def test_columns_say_what_the_rules_say() -> None:
    texts = [None, "", *map(str, range(1, 42)), "1,24,12", "9,39"]
    column = pa.array(texts * 2).dictionary_encode()
    regular = pa.array([True] * len(texts) + [False] * len(texts))
    rows = list(zip(*(part.to_pylist() for part in judge_rows(column, regular)), strict=True))
    assert rows == [judge(text, where) for where in (REGULAR, OUTSIDE) for text in texts]
    daily = list(zip(*(part.to_pylist() for part in judge_rows(column, None)), strict=True))
    assert daily == [judge(text, DAILY) for text in texts] * 2
