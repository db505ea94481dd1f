"""A place in the journal, and the one that the recorder publishes: how far it is synced."""

import contextlib
import json
import struct
import zlib
from dataclasses import dataclass

from ingestor.layout import Layout, list_segments

_PLACE = struct.Struct("<QQ")
_CRC = struct.Struct("<I4x")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Everything before this place is done with. `segment` is the segment's number."""

    segment: int
    offset: int


def next_segment(layout: Layout, named: int) -> int:
    """The number of a run's first segment: above all that the ledger (`named`), the journal and the cursors know of.

    Each alone may have been emptied or cut; a sink would skip a segment whose number it has passed.
    """
    known = [named, *(file.id.number for file in list_segments(layout))]
    for path in layout.cursors.glob("*.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # one that can't be read is its sink's to report
            stored = json.loads(path.read_bytes())
            known.append(int(stored["segment"]) - (stored["offset"] == 0))
    return 1 + max(known)


def encode_synced(cursor: Cursor) -> bytes:
    """The content of `journal/synced`. Written in one small write: a reader that meets a torn one reads again."""
    place = _PLACE.pack(cursor.segment, cursor.offset)
    return place + _CRC.pack(zlib.crc32(place))


def read_synced(layout: Layout) -> Cursor:
    """How far the journal is synced; Cursor(0, 0) where that is unknown, as from a power cut to the next start."""
    for _ in range(3):
        try:
            content = layout.synced.read_bytes()
        except FileNotFoundError:
            break
        if len(content) == _PLACE.size + _CRC.size:
            cursor = Cursor(*_PLACE.unpack_from(content))
            if content == encode_synced(cursor):
                return cursor
    return Cursor(0, 0)
