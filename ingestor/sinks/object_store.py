"""A mirror of the dataset in an object store or another directory, under the same names. Exactly once between
compactions.

Several recorders may share a place: each mirrors into a folder `root=<its name>`, which is one more column to a reader
of the whole. So no file of one has the name of another's, and none is removed but by its own recorder.

Only finished files are mirrored. Each is written beside the dataset and moved into its place when its size is right:
an error inside an open stream would else publish a part. A file goes when compaction has put another in its place, or
when the ledger says that retention deleted its day; never because it is missing here.
"""

import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path

import structlog
from pyarrow import fs as pafs

from ingestor.errors import SinkUnavailable
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.segment import Cursor
from ingestor.layout import Layout, list_segments
from ingestor.ledger import read_all_facts

_PASS_S = 2.0
_STAGING = ".staging"
_OWNER = ".recorded-by"
_ROOT_FOLDER = "root="

log = structlog.get_logger()


class ObjectStore:
    """An open link to the place of the mirror. After an error it is of no use any more."""

    name = "object_store"

    def __init__(self, uri: str, layout: Layout, root: str, *, shared: bool = False) -> None:
        """Look what is there. `shared`: others mirror to this place, too.

        Raises SinkUnavailable, also where the place is another root's.
        """
        self._layout = layout
        self._pass_due_s = -math.inf
        self._ended = self._committed = Cursor(0, 0)
        self._mirrored: dict[str, int] | None = None
        """What was here at the last pass."""
        with _translated(uri):
            self._files, place = _open_place(uri)
            self._base = f"{place}/{_ROOT_FOLDER}{root}" if shared else place
            selector = pafs.FileSelector(self._base, recursive=True, allow_not_found=True)
            there = {
                found.path.removeprefix(f"{self._base}/"): found.size
                for found in self._files.get_file_info(selector)
                if found.type == pafs.FileType.File
            }
            if shared and self._is_there(f"{place}/{_OWNER}"):
                raise SinkUnavailable(f"{uri} is the mirror of one root alone: share another place")
            if any(name.startswith(_ROOT_FOLDER) for name in there):
                raise SinkUnavailable(f"{uri} is shared by others: set sinks.object_store.shared, or another place")
            # One root per folder: two would remove each other's files.
            owner = f"{self._base}/{_OWNER}"
            if not self._is_there(owner):
                self._put(_OWNER, root.encode())
            else:
                with self._files.open_input_stream(owner) as stream:
                    if stream.read().decode() != root:
                        hint = "share a new place (shared: true), or take two"
                        raise SinkUnavailable(f"{uri} is the mirror of another root: {hint}")
            self._there = {name: size for name, size in there.items() if name.startswith("date=")}

    def write(self, rows: Rows) -> None:
        """Nothing: rows come in files."""

    def set_aside(self, damage: Damage) -> None:
        """Nothing: what is no record holds no row."""

    def end_segment(self, end: SegmentEnd) -> None:
        self._ended = end.at

    def tick(self, now_s: float) -> None:
        if now_s < self._pass_due_s:
            return
        self._pass_due_s = now_s + _PASS_S
        with _translated(self._base):
            here, unsealed = _list_here(self._layout)
            if here != self._mirrored:
                for name, size in sorted(here.items()):
                    if self._there.get(name) != size:
                        self._bring(name)
                # After what replaces it is there: at no moment does the mirror lack rows.
                for name in _find_gone(self._layout, here, self._there):
                    self._files.delete_file(f"{self._base}/{name}")
                    del self._there[name]
                    log.info("mirror.removed", file=name)
                self._mirrored = here
        first_unsealed = min((number for number in unsealed if number < self._ended.segment), default=None)
        self._committed = self._ended if first_unsealed is None else Cursor(first_unsealed, 0)

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Nothing: a file is there, or it isn't."""

    def _bring(self, name: str) -> None:
        try:
            content = (self._layout.trades / name).read_bytes()
        except FileNotFoundError:  # compacted or deleted since it was listed
            return
        if (size := self._there.get(name)) is not None:  # a segment that a crash let be sealed twice, or not our work
            log.warning("mirror.replaced", file=name, bytes_before=size, bytes=len(content))
        self._put(name, content)
        self._there[name] = len(content)
        log.info("mirror.brought", file=name, bytes=len(content))

    def _put(self, name: str, content: bytes) -> None:
        """Whole under this name, or not at all. Raises OSError."""
        staged = f"{self._base}/{_STAGING}/{name.replace('/', '.')}.part"
        final = f"{self._base}/{name}"
        if isinstance(self._files, pafs.LocalFileSystem):  # a store has no folders to make
            for path in (staged, final):
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(staged) as stream:
            stream.write(content)
        size = self._files.get_file_info(staged).size
        if size != len(content):
            raise OSError(f"{staged} has {size} bytes, not {len(content)}")
        self._files.move(staged, final)

    def _is_there(self, path: str) -> bool:
        return bool(self._files.get_file_info(path).type != pafs.FileType.NotFound)


def _open_place(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path in it. Raises OSError."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        files, path = pafs.FileSystem.from_uri(uri)
    except ValueError as error:  # a scheme or a parameter that this pyarrow doesn't know
        raise OSError(str(error)) from None
    return files, path.rstrip("/")


def _list_here(layout: Layout) -> tuple[dict[str, int], list[int]]:
    """The sizes of the files of segments for which the dataset speaks, and the numbers of all other segments.

    The names first: what is listed then, and is not unsealed after that, is committed.
    """
    found = {}
    for path in layout.trades.glob("date=*/*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # compacted or deleted since it was listed
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_size
    unsealed = [file.id for file in list_segments(layout) if not file.sealed]
    names = {f"{segment}.parquet" for segment in unsealed}
    here = {name: size for name, size in found.items() if name.partition("/")[2] not in names}
    return here, [segment.number for segment in unsealed]


def _find_gone(layout: Layout, here: Collection[str], there: Collection[str]) -> list[str]:
    """The files of the mirror that were replaced or deleted on purpose here, rather than lost. Raises OSError."""
    missing = [name for name in there if name not in here]
    kept_days = {name.partition("/")[0] for name in here}
    lost_days = {name.partition("/")[0] for name in missing} - kept_days
    deleted_days = set()
    if lost_days:  # only here is the ledger read: retention deletes whole days, and says so
        facts = read_all_facts(layout, '"fact":"s')
        deleted_days = {f"date={fact['date']}" for fact in facts if fact["fact"] == "day.deleted"}
    return [name for name in missing if name.partition("/")[0] in kept_days | deleted_days]


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    """What the store refuses is SinkUnavailable."""
    try:
        yield
    except OSError as error:
        raise SinkUnavailable(f"{place}: {error}") from error
