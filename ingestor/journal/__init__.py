"""The journal: an append-only log of segments, with one writer and any number of readers, in any process.

- A **record** is a checked header and a body (`records.py`): whose segment it is, the schema, a block of rows, the
  reasons of rejects, or the end. Nothing but a whole record passes as one.
- A **segment** is one file of records, ordered by its number, because wall clocks step back. It is over at its end
  record, or where its records stop and a later segment has begun. A segment may say that it continues an earlier one
  from an offset: what stands behind that offset is void.
- A **cursor** is a place (segment, offset) up to which a reader is done. `journal/synced` is the writer's own: up to
  it everything survives a power cut, and readers that keep records read no further. Views read to the end.
- To **seal** a segment is to rename it to `….sealed.journal` once its rows are published as Parquet. From then on the
  dataset speaks for its rows.

The order of the writer's steps (`writer.py`): a new segment is created with its first two records, its file is synced,
then the directory, and only then comes a row. Rows are written, synced, and then `synced` moves; until then they stay
in memory. After a failed write or fsync the segment is abandoned at its synced offset, that fsync is never retried (the
kernel may have dropped the pages), and the next segment begins with the rows after it, under their old numbers.
The order of sealing (`sinks/parquet_files.py`): each date's file is written in staging, synced, renamed, and its
directory synced; then the segment is renamed, and the journal's directory synced.

A crash can leave: half a record at the end of the newest segment; rows that were written and not synced, which a
killed process leaves whole and a power cut does not; files of a segment that is not sealed yet, which are written again
under the same names; `synced` torn or behind. The next start syncs what is left before it reads it.

Only the recorder deletes segments (`sinks/runner.py`): those that each of its sinks has passed, and that no external
sink's retention slot keeps. A file that can't be read is never deleted. No reader writes here.
"""
