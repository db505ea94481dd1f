"""What a venue says is data: no command for a terminal, no direction of the text around it, no invisible twin."""

import json
import re

_FILLERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)
"""Letters and marks to Unicode, and invisible: fillers, a blank of Braille, selectors of variants."""


def is_visible(text: str) -> bool:
    """Whether each of its characters, but for the blank, shows: none of Unicode's categories C and Z (controls, formats
    such as zero width and directions, line ends, other blanks, what is no character), and no filler.
    """
    return text.isprintable() and (text.isascii() or not _FILLERS.search(text))


def escape(text: str, *, keep: str = "") -> str:
    r"""The text with each character that doesn't show, but for those in `keep`, as its escape: `\x1b`, `\u202e`."""
    if is_visible(text):
        return text
    return "".join(one if one in keep or is_visible(one) else one.encode("unicode_escape").decode() for one in text)


def escape_json(text: str) -> str:
    r"""JSON whose strings say the same, with JSON's own escapes (`\u202e`) for what doesn't show."""
    if is_visible(text):
        return text
    return "".join(
        one if one == "\n" or is_visible(one) else json.dumps(one)[1:-1].replace("\x7f", "\\u007f") for one in text
    )
