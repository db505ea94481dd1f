"""A place in the journal, and the one that the recorder publishes: how far it is synced."""

import struct
import zlib
from dataclasses import dataclass

from ingestor.layout import Layout

_PLACE = struct.Struct("<QQ")
_CRC = struct.Struct("<I4x")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Everything before this place is done with. `segment` is the segment's number."""

    segment: int
    offset: int


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
