"""The schema of trades, from `Feed.decode` to every sink and reader."""

import pyarrow as pa

FORMAT_VERSION = 2
"""Of a root, a segment and a file. New code reads old; old code refuses new with a sentence."""

TIMESTAMP = pa.timestamp("ms", tz="UTC")
RECEIVED_AT = pa.timestamp("us", tz="UTC")

VENUE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("timestamp", TIMESTAMP),  # when the trade happened, by the venue's clock
    pa.field("symbol", pa.string()),  # as the venue names it
    pa.field("price", pa.float64()),
    pa.field("volume", pa.float64()),  # 0 is a price-only update, null is unknown
    pa.field("conditions", pa.string()),  # codes joined by ","; null where none were given, "" for an empty list
)
RECORDER_FIELDS: tuple[pa.Field, ...] = (
    pa.field("received_at", RECEIVED_AT),  # when its bytes were read from the socket
    pa.field("sequence", pa.int64()),  # run * 2^40 + count: unique in a root, rising with arrival
    pa.field("repeated", pa.bool_()),  # its frame is byte-identical to the one before on the same connection
)

VENUE_TRADES = pa.schema(VENUE_FIELDS)
"""The columns that every feed decodes: timestamp, symbol, price, volume, conditions."""

TRADES = pa.schema(VENUE_FIELDS + RECORDER_FIELDS)
"""The columns of the journal: a feed's, then the recorder's. A feed may append columns of its own at the end."""

FRAMES = pa.schema(
    [
        pa.field("run", pa.int64()),
        pa.field("connection", pa.int64()),  # its number in the run
        pa.field("frame", pa.int64()),  # its number in the run, as in `rejects/`; rising by one in order of receipt
        pa.field("block", pa.int64()),  # the number of the first frame that was decoded together with it
        pa.field("sequence", pa.int64()),  # of the first trade that was recorded of that block, if any was
        pa.field("trades", pa.int64()),  # how many trades were recorded of that block
        pa.field("received_at", RECEIVED_AT),
        pa.field("payload", pa.binary()),  # the bytes as they came
    ]
)
"""The columns of raw frames (`storage.raw`)."""

PACKED_FRAMES = pa.schema(
    [
        pa.field("run", pa.int64()),
        pa.field("block", pa.int64()),  # as in FRAMES
        pa.field("frames", pa.int64()),  # how many
        pa.field("connection", pa.int64()),
        pa.field("frame", pa.int64()),  # the number of the first
        pa.field("sequence", pa.int64()),
        pa.field("trades", pa.int64()),
        pa.field("size", pa.int64()),  # of `data`, uncompressed
        pa.field("first_received_at", RECEIVED_AT),
        pa.field("last_received_at", RECEIVED_AT),
        pa.field(
            "data", pa.binary()
        ),  # all times in µs (int64), all lengths (int32), all bytes; zstd where shorter than `size`
    ]
)
"""The columns of a file of raw frames: a row per block, compressed as the journal has it."""

ORIGIN = pa.field("origin", pa.string())
"""The last column of rows that were filled: whose history they are from; of rows that were imported IMPORTED and the
file's name. Null, or not there, in those that were heard.
"""

IMPORTED = "import:"

RUN_SHIFT = 40
"""`sequence >> RUN_SHIFT` is the run that recorded a row."""


def recorded(venue: pa.Schema) -> pa.Schema:
    """The schema that a root records for a feed whose decoded columns are `venue`: TRADES, then the feed's own."""
    extra = [field for field in venue if field.name not in VENUE_TRADES.names]
    return pa.schema([*TRADES, *extra])
