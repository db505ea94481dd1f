"""What doesn't show is escaped, the same way everywhere; what does is left alone."""

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import get_args

import pytest

from ingestor.capture.gaps import Cause
from ingestor.texts import CAUSES, describe_blindness, escape, escape_json, is_visible

HIDDEN = {
    "escape": "\x1b",
    "bell": "\x07",
    "newline": "\n",
    "delete": "\x7f",
    "control sequence introducer": "\x9b",
    "next line": "\x85",
    "soft hyphen": "\xad",
    "no-break space": "\xa0",
    "combining grapheme joiner": "\u034f",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "right-to-left mark": "\u200f",
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "Hangul filler": "\u3164",
    "halfwidth Hangul filler": "\uffa0",
    "Braille blank": "\u2800",
    "variation selector": "\ufe0f",
    "tag": "\U000e0041",
    "variation selector 17": "\U000e0100",
    "private use": "\ue000",
    "surrogate": "\ud800",
    "no character": "\U0010ffff",
}


@pytest.mark.parametrize("character", HIDDEN.values(), ids=HIDDEN)
def test_what_does_not_show_is_escaped(character: str) -> None:
    text = f"AAPL{character}X"
    assert not is_visible(text)
    assert escape(text) == f"AAPL{character.encode('unicode_escape').decode()}X"
    assert is_visible(escape(text))
    assert escape(text, keep=character) == text


@pytest.mark.parametrize("character", HIDDEN.values(), ids=HIDDEN)
def test_json_says_the_same_with_its_own_escapes(character: str) -> None:
    value = {"symbol": f"AAPL{character}", "more": "Ω"}
    told = escape_json(json.dumps(value, ensure_ascii=False))
    assert is_visible(told)
    assert json.loads(told) == value


@pytest.mark.parametrize("text", ["AAPL", "BINANCE:BTCUSDT", "BRK.B", "^GSPC", "$SPX a/b", "日経", "Ω≈ç", "🚀", ""])
def test_what_shows_is_left_alone(text: str) -> None:
    assert is_visible(text)
    assert escape(text) == escape_json(text) == text


def test_nothing_of_unicodes_hidden_categories_shows() -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [
        hex(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in hidden and is_visible(chr(code))
    ]


# States


def test_every_cause_has_one_wording_everywhere() -> None:
    root = Path(__file__).parents[1]
    page = (root / "ingestor/live/page/page.js").read_text(encoding="utf-8")
    assert dict(re.findall(r'^  (\w+): "([^"]+)",$', page, re.MULTILINE)) == CAUSES
    told = (root / "docs/troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| blind \(([^)|]+)\)(?:, blind \(([^)]+)\))? \|", told, re.MULTILINE)
    rows = [
        (name, words) for names, *all_ in shown for name, words in zip(re.findall(r"\w+", names), all_, strict=False)
    ]
    assert dict(rows) == {cause: CAUSES[cause] for cause in CAUSES if not cause.startswith("no_")}
    assert set(get_args(Cause)) <= set(CAUSES)


def test_blindness_in_words() -> None:
    assert describe_blindness("connection") == "blind (no connection)"
    assert describe_blindness("of a later version") == "blind (of a later version)"
    assert describe_blindness(None) == "blind"
