"""Merges the files of each closed day into one, verified by a checksum over rows before it takes their place.

The checksum multiplies each value by a number derived from its row's sequence, so that it also finds a value that moved
to another row. It leaves out nulls, so that a column that older rows lack counts as one of nulls.

Nothing waits for compaction: the rows are merged beside the dataset, from committed segments only, whose files never
change. The new files are read back and compared with the rows that were read, by number and by checksum. Then, under
the date's lock, a folder with the new files and those that came meanwhile takes the place of the old one in one step. A
crash before that step leaves a folder in staging that nobody needs, a crash after it leaves the old folder there: the
next start removes either.

Where the file system can't exchange folders, the new files are moved into the date's folder and the old ones removed.
Each new file names the segments that it holds and how many files it is one of, so that a reader at any moment knows
which to read, and the next start what to remove (see `snapshot`).
"""

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from ingestor import parquet
from ingestor.dataset import snapshot
from ingestor.dataset.rows import AT_ONCE, HELD_ROWS, concat_rows, merge_rows, open_rows, plain_texts, with_columns
from ingestor.errors import CompactionRunning, ConservationViolated, DamagedFile
from ingestor.layout import (
    DIRECTORY_MODE,
    FILE_MODE,
    Layout,
    is_own,
    list_segments,
    locked_date,
    make_folder,
    open_own,
    remove_tree,
    set_mode,
    sync_directory,
    sync_file,
    try_lock,
)

log = structlog.get_logger()

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

_MIX = -7046029254386353131  # 2^64 over the golden ratio, odd, as a signed number
_SALT = 0x5BD1E995  # so that nothing but a null counts nothing
_AT_ONCE = 1 << 15
FILE_BYTES = 128 << 20


def exchange(one: Path, other: Path) -> bool:
    """Let these two paths of one file system change places; False where that can't be done in one step. Raises
    OSError.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@dataclass(slots=True)
class Tally:
    """A checksum of rows, table by table. Its total is equal for equal rows, in whatever order."""

    rows: int = 0
    _sums: dict[str, int] = field(default_factory=dict)
    """Of what is counted, by column."""
    _held: list[pa.Table] = field(default_factory=list)
    """Yet to be counted: to count many rows at once takes half the time."""
    _held_rows: int = 0

    def add(self, table: pa.Table) -> None:
        """Count these rows."""
        self.rows += table.num_rows
        self._held_rows += table.num_rows
        self._held.append(table)
        if self._held_rows >= _AT_ONCE:
            self._count_held()

    def total(self) -> tuple[int, dict[str, int]]:
        """The number of rows, and a checksum of each column."""
        self._count_held()
        return self.rows, self._sums

    def _count_held(self) -> None:
        table = concat_rows([table for table in self._held if table.num_rows])
        self._held, self._held_rows = [], 0
        if table is not None:
            weight = pc.bit_wise_or(_mixed(table.column("sequence")), 1)
            for name in table.column_names:
                bits = pa.chunked_array([_chunk_bits(chunk) for chunk in table.column(name).chunks], pa.int64())
                product = pc.multiply(_mixed(bits), weight)  # wraps around, as is meant
                if (counted := pc.sum(product).as_py()) is not None:
                    self._sums[name] = (self._sums.get(name, 0) + counted) % (1 << 64)


def _chunk_bits(chunk: pa.Array) -> pa.Array:
    """An integer for each value; the same for the same value."""
    if pa.types.is_floating(chunk.type):
        return chunk.cast(pa.float64()).view(pa.int64())
    if pa.types.is_dictionary(chunk.type):
        return pa.array([_text_bits(text) for text in chunk.dictionary.to_pylist()], pa.int64()).take(chunk.indices)
    if pa.types.is_string(chunk.type):
        return _chunk_bits(chunk.dictionary_encode())
    return chunk.cast(pa.int64())


@lru_cache(1 << 14)
def _text_bits(text: str | None) -> int:
    """A few texts are in every chunk again."""
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "little", signed=True)


def _mixed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bits spread over the whole number, so that sums of neighbours differ."""
    once = pc.multiply(pc.bit_wise_xor(values, _SALT), _MIX)
    return pc.multiply(pc.bit_wise_xor(once, pc.shift_right(once, 29)), _MIX)


class Compaction(NamedTuple):
    """The files of a date before and after its compaction."""

    day: date
    files_before: int
    files_after: int
    rows: int
    bytes_before: int
    bytes_after: int


def compact_days(layout: Layout, before: date, file_bytes: int = FILE_BYTES) -> Iterator[Compaction]:
    """Compact each UTC date before this one that has something to merge; clear first what a crash has left.

    A date with a file that can't be read stays as it is; DamagedFile names the first of them once all others are done.
    Raises CompactionRunning where another process does so, ConservationViolated where what was written isn't what was
    read (the date is then as it was), FormatTooNew, OSError.
    """
    damaged: DamagedFile | None = None
    with locked_maintenance(layout):
        clear_leftovers(layout)
        for day in snapshot.list_days(layout):
            try:
                while day < before and (done := _compact_date(layout, day, file_bytes)) is not None:
                    yield done
            except DamagedFile as error:
                log.error("day.damaged", date=day.isoformat(), error=str(error), hint="it is not compacted")
                damaged = damaged or error
            except FileNotFoundError as error:
                log.error("day.damaged", date=day.isoformat(), error=f"{error.filename}: leads to no file")
                damaged = damaged or DamagedFile(f"{error.filename}: is listed, and leads to no file")
    if damaged is not None:
        raise damaged


def has_work(layout: Layout, before: date) -> bool:
    """Whether a date before this one has several files, of which one is not compacted."""
    for day in snapshot.list_days(layout):
        compacted, parts = (
            snapshot.split_names(snapshot.list_names(snapshot.date_folder(layout, day))) if day < before else ([], [])
        )
        if parts and len(parts) + len(compacted) > 1:
            return True
    return False


@contextlib.contextmanager
def locked_maintenance(layout: Layout) -> Iterator[None]:
    """Hold this root as the only process that compacts it. Raises CompactionRunning where another does."""
    fd = open_own(layout.staging / "upkeep.lock", os.O_RDWR)
    try:
        if not try_lock(fd):
            raise CompactionRunning(f"{layout.root} is being compacted by another process")
        yield
    finally:
        os.close(fd)


def clear_leftovers(layout: Layout, turned: Callable[[], None] = lambda: None) -> None:
    """Remove what a crash of compaction or retention has left. The caller holds `locked_maintenance`; `turned` is
    called as the work proceeds.

    A date with a file that can't be read is logged, and stays as it is. Raises OSError.
    """
    for folder in layout.staging.glob("date=*.compacted"):
        log.info("leftover.removed", file=folder.name)
        remove_tree(folder, turned)
    for folder in layout.staging.glob("*.date=*.deleted"):
        log.info("leftover.removed", file=folder.name)
        remove_day(layout, folder, turned)
    for day in snapshot.list_days(layout):
        turned()
        try:
            if snapshot.split_names(snapshot.list_names(snapshot.date_folder(layout, day)))[0]:
                with locked_date(layout, day):
                    _remove_superseded(snapshot.date_folder(layout, day))
        except DamagedFile as error:
            log.error("day.damaged", date=day.isoformat(), error=str(error), hint="`ingestor verify` names all of them")
        except FileNotFoundError as error:
            log.error("day.damaged", date=day.isoformat(), error=f"{error.filename}: leads to no file")


def remove_day(layout: Layout, aside: Path, turned: Callable[[], None] = lambda: None) -> None:
    """Remove the folder of a date that retention has set aside in staging, as `trades.date=….deleted`. What no recorder
    made goes back to where it was. Raises OSError.
    """
    if aside.is_symlink() or not aside.is_dir():
        remove_tree(aside)
        return
    kind, _, day = aside.name.removesuffix(".deleted").partition(".")
    home = layout.root / kind / day
    for path in sorted(aside.iterdir()):
        turned()
        if is_own(f"{kind}/{day}/{path.name}"):
            remove_tree(path)
        elif not os.path.lexists(home / path.name):
            make_folder(home)
            path.rename(home / path.name)
            sync_directory(home)
    if not any(aside.iterdir()):
        aside.rmdir()


def _compact_date(layout: Layout, day: date, file_bytes: int) -> Compaction | None:
    """Merge the committed files of a date, or the oldest of very many; None where there is nothing to merge."""
    folder = snapshot.date_folder(layout, day)
    names = snapshot.list_names(folder)  # before the journal: what is listed here and not unsealed there is committed
    unsealed = {str(file.id) for file in list_segments(layout) if not file.sealed}
    sync_directory(layout.journal)  # after its listing: a power cut must not undo a commit that is relied on
    inputs = snapshot.current_files(folder, snapshot.without_unsealed(names, unsealed))[:AT_ONCE]
    if len(inputs) < 2 or all(snapshot.Compacted.parse(path.name) for path in inputs):
        return None
    staged = layout.staging / f"{folder.name}.compacted"
    remove_tree(staged)  # what an attempt left that failed in this process
    staged.mkdir(mode=DIRECTORY_MODE)
    bytes_before = sum(path.stat().st_size for path in inputs)
    written = _write(staged, inputs, file_bytes)
    bytes_after = sum(path.stat().st_size for path in written.paths)
    if not _take_place(layout, day, staged, written, inputs):
        return None
    done = Compaction(day, len(inputs), len(written.paths), written.tally.rows, bytes_before, bytes_after)
    log.info("day.compacted", date=day.isoformat(), rows=done.rows, files=len(inputs), bytes=bytes_after)
    return done


# Writing


@dataclass(slots=True)
class _Written:
    """The files of a compaction that is being made."""

    origin: frozenset[str]
    paths: list[Path] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def _write(staged: Path, inputs: list[Path], file_bytes: int) -> _Written:
    """Merge the inputs into files in `staged`, synced and verified.

    Raises ConservationViolated, DamagedFile, OSError.
    """
    for path in inputs:  # what is wrong in them would get right checksums
        parquet.check_pages(path)
    written = _Written(frozenset().union(*map(snapshot.read_origin, inputs)))
    schemas = []
    for path in inputs:
        with parquet.open_parquet(path) as file, parquet.named_errors(path):
            schemas.append(file.schema_arrow.remove_metadata())
    schema = parquet.file_schema(pa.unify_schemas(schemas), ",".join(sorted(written.origin)))
    with contextlib.ExitStack() as stack:
        batch_rows = min(max(HELD_ROWS // len(inputs), 1 << 10), 1 << 16)
        sources = [open_rows(stack, path, batch_rows) for path in inputs]
        _write_files(staged, schema, merge_rows(sources, look=written.tally.add), file_bytes)
    _verify(staged, written, inputs)
    paths = sorted(staged.iterdir())
    for index, path in enumerate(paths, 1):
        final = staged / str(snapshot.Compacted(snapshot.newest_number(written.origin), index, len(paths)))
        path.rename(final)
        set_mode(final, FILE_MODE)
        sync_file(final)
        written.paths.append(final)
    sync_directory(staged)
    return written


def _write_files(folder: Path, schema: pa.Schema, tables: Iterator[pa.Table], file_bytes: int) -> None:
    """Sorted rows into files, each closed after the row group with which it holds `file_bytes`."""
    groups = _row_groups(tables, schema)
    for number, first in enumerate(groups, 1):
        path = folder / f"{number:06d}"
        with (
            pa.OSFile(str(path), "wb") as sink,
            pq.ParquetWriter(sink, schema, **parquet.writer_options(schema)) as writer,
        ):
            writer.write_table(first, row_group_size=parquet.ROW_GROUP)
            while sink.tell() < file_bytes and (group := next(groups, None)) is not None:
                writer.write_table(group, row_group_size=parquet.ROW_GROUP)
        parquet.add_checksums(path)


def _row_groups(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of parquet.ROW_GROUP rows; the last may be shorter."""
    held = schema.empty_table()
    for table in tables:
        held = pa.concat_tables([held, with_columns(plain_texts(table), schema).cast(schema)])
        while held.num_rows >= parquet.ROW_GROUP:
            yield held.slice(0, parquet.ROW_GROUP)
            held = held.slice(parquet.ROW_GROUP)
    if held.num_rows:
        yield held


def _verify(staged: Path, written: _Written, inputs: list[Path]) -> None:
    """Check that the files on the disk hold the rows of the inputs. Raises ConservationViolated."""
    found = Tally()
    with contextlib.ExitStack() as stack:
        for path in sorted(staged.iterdir()):
            parquet.check_pages(path)
            for table in open_rows(stack, path, 1 << 16):
                found.add(table)
    promised = sum(map(parquet.count_rows, inputs))
    if found.total() != written.tally.total() or found.rows != promised:
        raise ConservationViolated(
            f"compaction of {inputs[0].parent.name} wrote {found.rows} rows for {promised}, or other values: given up"
        )


# Taking place


def _take_place(layout: Layout, day: date, staged: Path, written: _Written, inputs: list[Path]) -> bool:
    """Put the new files in the place of the old ones; False, and nothing is changed, where retention has deleted the
    date meanwhile.
    """
    folder = snapshot.date_folder(layout, day)
    with locked_date(layout, day):
        names = snapshot.list_names(folder)
        if not {path.name for path in inputs} <= set(names):
            remove_tree(staged)
            return False
        replaced = {path.name for path in inputs} | {f"{segment}.parquet" for segment in written.origin}
        newcomers = [name for name in names if name not in replaced]
        foreign = [
            path.name for path in folder.iterdir() if not is_own(f"{layout.trades.name}/{folder.name}/{path.name}")
        ]
        # What was published since the listing goes along, so that the folders can be exchanged in one step. Somebody
        # else's file stays where it is.
        if not foreign and _link_all(folder, newcomers, staged) and exchange(staged, folder):
            sync_directory(layout.trades)
            sync_directory(layout.staging)
        else:  # first all new files come, then the old ones go: a reader knows at each moment which to read
            for path in written.paths:
                (staged / path.name).rename(folder / path.name)
            sync_directory(folder)
            _remove_superseded(folder)
        remove_tree(staged)
    return True


def _link_all(folder: Path, names: list[str], other: Path) -> bool:
    """Hard-link these files into the other folder; False where the file system has no hard links."""
    try:
        for name in names:
            (other / name).hardlink_to(folder / name)
    except OSError as error:
        if error.errno in (
            errno.EPERM,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
            errno.EMLINK,
            errno.EACCES,
            errno.EXDEV,
            errno.EINVAL,
        ):
            return False
        raise
    sync_directory(other)
    return True


def _remove_superseded(folder: Path) -> None:
    """Remove compactions that never became whole, and what whole ones have replaced. The date's lock is held."""
    compacted, parts = snapshot.split_names(snapshot.list_names(folder))
    whole = {str(name) for names in snapshot.whole_compactions(compacted) for name in names}
    kept = {path.name for path in snapshot.current_files(folder, [*whole, *parts])}
    gone = [name for name in [*map(str, compacted), *parts] if name not in kept]
    for name in gone:
        (folder / name).unlink()
        log.info("leftover.removed", file=name)
    if gone:
        sync_directory(folder)
