"""What of a block is not recorded: frames and trades that can't be decoded, trades that make no sense."""

import re
from dataclasses import dataclass

from ingestor.feeds import Decoded, Frames
from ingestor.logs import redactor_in_force
from ingestor.texts import escape

_LOOKED_AT = 4096
_SAMPLE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame, or a trade of it, that is not recorded. `frame` counts this run's frames: with `trade` it is the key."""

    frame: int
    trade: int | None
    reason: str
    received_us: int
    payload: bytes


def make_sample(payload: bytes) -> str:
    r"""What a log and `status` may show of a message: its beginning, on one line, without secrets, however they are
    written (`\u0073ecret`).
    """
    text = payload[:_LOOKED_AT].decode(errors="replace")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    shown = escape(redactor_in_force()(text))
    if len(payload) <= _LOOKED_AT and len(shown) <= _SAMPLE_CHARACTERS:
        return shown
    return f"{shown[:_SAMPLE_CHARACTERS]}… ({len(payload):,} bytes)"


def find_refused(frames: Frames, decoded: Decoded, rejected: list[tuple[int, str]], first_frame: int) -> list[Refused]:
    """All that is refused of these frames, which the run counts from `first_frame` on.

    `rejected`: row and reason of the decoded trades that were found not sane.
    """
    found = [(one.frame, one.trade, one.reason) for one in decoded.rejects]
    if rejected:
        places = _find_places(decoded)
        found += [(*places[row], reason) for row, reason in rejected]
    return [
        Refused(first_frame + frame, trade, reason, frames.received_us[frame], frames.payloads[frame])
        for frame, trade, reason in found
    ]


def _find_places(decoded: Decoded) -> list[tuple[int, int]]:
    """Where each decoded trade stands: its frame in the block, and its place among all trades of that frame."""
    taken = {(one.frame, one.trade) for one in decoded.rejects}
    places: list[tuple[int, int]] = []
    for frame in decoded.frame_of.to_pylist():
        trade = places[-1][1] + 1 if places and places[-1][0] == frame else 0
        while (frame, trade) in taken:
            trade += 1
        places.append((frame, trade))
    return places
