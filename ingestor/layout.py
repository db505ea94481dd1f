"""The files of a root: their paths and names, how one is published, and who may write (locks)."""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

import structlog

from ingestor import system
from ingestor.errors import ConfigError, DamagedFile, RootLocked
from ingestor.store import StorePath

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
_SMALL_BYTES = 1 << 20
_LINE_BYTES = 1 << 21
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors by which a file system says that it knows no locks."""
_LOCK_BYTES = 256
_LOCK_ATTEMPTS = 20
_LOCK_RETRY_S = 0.01

_Content = TypeVar("_Content")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, order=True)
class SegmentId:
    """A segment's name. Order is by number: wall clocks step back."""

    number: int
    started: datetime
    run: int

    def __str__(self) -> str:
        return f"{self.number:012d}-{self.started:%Y%m%dT%H%M%SZ}-r{self.run:06d}"

    @classmethod
    def parse(cls, text: str) -> "SegmentId":
        """The id that this file name (with or without endings) begins with. Raises ValueError on any other name."""
        number, started, run = text.split(".", 1)[0].split("-")
        when = datetime.strptime(started, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return cls(int(number), when, int(run.removeprefix("r")))


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one root. Nothing here touches the disk but `create`."""

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by the one recorder, whom it names."""
        return self.root / ".lock"

    @property
    def trades(self) -> Path:
        """The dataset: final files only, nothing else is ever in here."""
        return self.root / "trades"

    @property
    def csv(self) -> Path:
        """CSV files, a folder per date on which their segment began."""
        return self.root / "csv"

    @property
    def journal(self) -> Path:
        """The segments that are not in the dataset yet, or that an external sink still reads."""
        return self.root / "journal"

    @property
    def cursors(self) -> Path:
        """One file per sink: the place in the journal up to which it has read."""
        return self.root / "cursors"

    @property
    def rejects(self) -> Path:
        """Frames and trades that were refused, one file of lines per UTC date."""
        return self.root / "rejects"

    @property
    def ledger(self) -> Path:
        """The facts of days that are not closed, and what of closed ones is no data."""
        return self.root / "ledger"

    @property
    def state(self) -> Path:
        """A few numbers that a start must never forget, beside the ledger that has them too."""
        return self.root / "state.json"

    @property
    def coverage(self) -> Path:
        """Of closed days: what was recorded, blind or unproven. In a root of format 1 the ledger is in here."""
        return self.root / "coverage"

    @property
    def accounts(self) -> Path:
        """The content of each segment, by symbol, and the counts of conservation."""
        return self.root / "accounts"

    @property
    def raw(self) -> Path:
        """Frames as they came, a folder per UTC date of receipt; missing where they are not kept."""
        return self.root / "raw"

    @property
    def manifests(self) -> Path:
        """Of a copy: for each closed day its files, their sizes and checksums."""
        return self.root / "manifests"

    @property
    def staging(self) -> Path:
        """Files under construction, and locks of dates; on the file system of the rest, so that a rename publishes."""
        return self.root / "staging"

    @property
    def aside(self) -> Path:
        """Bytes that salvage could not read, kept for a person to look at."""
        return self.journal / "aside"

    @property
    def synced(self) -> Path:
        """Holds the place in the journal up to which rows survive a power cut."""
        return self.journal / "synced"

    @property
    def accepted_keys(self) -> Path:
        """Salted hashes of the API keys that the venue has accepted for this root."""
        return self.root / ".accepted-keys.json"

    @property
    def holidays(self) -> Path:
        """The days off of the US market, as the venue last told them."""
        return self.root / ".us-holidays.json"

    @property
    def root_name(self) -> Path:
        """Holds the name by which other systems know this root."""
        return self.root / ".name"

    @property
    def sinks_lock(self) -> Path:
        """Locked by the one process that carries the journal to other systems."""
        return self.cursors / ".sinks.lock"

    @property
    def ballast(self) -> Path:
        """Reserved bytes, freed when the disk is full, so that a stop has room."""
        return self.journal / "ballast"

    def open_segment(self, segment: SegmentId) -> Path:
        """A segment of the journal until it is sealed."""
        return self.journal / f"{segment}.journal"

    def sealed_segment(self, segment: SegmentId) -> Path:
        """The same segment once its files are published: the rename to this name is the commit."""
        return self.journal / f"{segment}.sealed.journal"

    def parquet_file(self, segment: SegmentId, day: date) -> Path:
        """The rows of one segment that are of this UTC date."""
        return self.trades / f"date={day.isoformat()}" / f"{segment}.parquet"

    def raw_file(self, segment: SegmentId, day: date) -> Path:
        """The frames of one segment that came on this UTC date."""
        return self.raw / f"date={day.isoformat()}" / f"{segment}.parquet"

    def csv_file(self, segment: SegmentId) -> Path:
        """The rows of one segment, by the date on which it began."""
        return self.csv / f"date={segment.started:%Y-%m-%d}" / f"{segment}.csv"

    def cursor_file(self, sink: str) -> Path:
        """The cursor of one sink."""
        return self.cursors / f"{sink}.json"

    def fault_file(self, sink: str) -> Path:
        """Why this sink takes nothing now; there is none while it does."""
        return self.cursors / f"{sink}.fault"

    def rejects_file(self, day: date) -> Path:
        """The rejects that were received on this UTC date."""
        return self.rejects / f"date={day.isoformat()}.jsonl"

    def ledger_file(self, run: int, part: int, day: date) -> Path:
        """The file for a run's facts of a date, the `part`th (from 1) of this run."""
        return self.ledger / f"{run:06d}-{part:04d}-{day.isoformat()}.jsonl"

    def closed_facts_file(self, day: date) -> Path:
        """The facts of a month's closed days that are neither coverage nor accounts."""
        return self.ledger / f"closed-{day:%Y-%m}.jsonl"

    def coverage_file(self, day: date) -> Path:
        """The coverage of a closed day."""
        return self.coverage / f"date={day.isoformat()}" / "coverage.parquet"

    def manifest_file(self, day: date) -> Path:
        """The manifest of a closed day."""
        return self.manifests / f"date={day.isoformat()}.json"

    def account_file(self, segment: SegmentId) -> Path:
        """The account of one segment, by the date on which it began."""
        return self.accounts / f"date={segment.started:%Y-%m-%d}" / f"{segment}.parquet"

    def create(self) -> None:
        """Make the root and the folders that a recorder writes to. Raises OSError, also where one can't be used, or
        where the root, or what it lies in, is somebody's file.
        """
        for folder in (self.root, *self.root.parents):
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(folder))
        for folder in (
            self.journal,
            self.cursors,
            self.rejects,
            self.ledger,
            self.coverage,
            self.accounts,
            self.staging,
        ):
            make_folder(folder)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                fault = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(fault, os.strerror(fault), str(folder))


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment as the journal's folder shows it."""

    id: SegmentId
    path: Path
    sealed: bool


def list_segments(layout: Layout) -> list[SegmentFile]:
    """The segments in the journal, oldest first; none where there is no journal. Other names are not ours to read.

    Raises DamagedFile where the folder can't be listed, OSError.
    """
    try:
        names = os.listdir(layout.journal)  # noqa: PTH208  asked many times a second: five times as fast
    except FileNotFoundError:
        return []
    except (NotADirectoryError, PermissionError) as error:
        raise DamagedFile(f"{layout.journal}: can't be read: {error.strerror}") from None
    found = [file for name in names if (file := _parse_segment(layout.journal, name)) is not None]
    return sorted(found, key=lambda file: (file.id.number, file.id.started, file.id.run))


@functools.lru_cache(maxsize=1 << 14)  # a name is parsed once, however often it is listed
def _parse_segment(journal: Path, name: str) -> SegmentFile | None:
    if not name.endswith(".journal"):
        return None
    stem = name.removesuffix(".journal")
    segment = segment_of(stem.removesuffix(".sealed"))
    return SegmentFile(segment, journal / name, stem.endswith(".sealed")) if segment else None


# Which names are ours. A root may hold files of others: what a desktop leaves in each folder (.DS_Store), an editor's
# backup, half a download, notes, somebody's own Parquet. They are neither read, nor mirrored, nor deleted.


@functools.lru_cache(maxsize=1 << 14)
def segment_of(text: str) -> SegmentId | None:
    """The segment with exactly this id; None for any other text, such as the name of a copy that somebody made."""
    try:
        segment = SegmentId.parse(text)
    except ValueError:
        return None
    return segment if str(segment) == text else None


_DAY = r"date=(?P<day>\d{4}-\d\d-\d\d)"
_SEGMENT = r"(?P<segment>\d{12,}-\d{8}T\d{6}Z-r\d{6,})"
_SMALL = r"state\.json|\.accepted-keys\.json|\.us-holidays\.json|\.name"
_OF_SINKS = r"(?:csv|sqlite|postgres|redis|kafka|object_store)\.(?:json|fault|\d+\.lost)"
_CLOSED_FACTS = r"closed-\d{4}-\d\d\.jsonl"
_OWN = {
    "": rf"{_SMALL}|\.lock|datapackage\.json|README\.md",
    "trades": rf"{_DAY}(/({_SEGMENT}|compacted-\d{{12}}-\d{{4}}of\d{{4}})\.parquet)?",
    "csv": rf"{_DAY}(/{_SEGMENT}\.csv(\.gz)?)?",
    "raw": rf"{_DAY}(/{_SEGMENT}\.parquet)?",
    "accounts": rf"{_DAY}(/(closed-)?{_SEGMENT}\.parquet)?",
    "coverage": rf"{_DAY}(/coverage\.parquet)?|\d{{6}}-\d{{8}}T\d{{6}}Z\.jsonl",  # the latter: ledgers of format 1
    "ledger": rf"\d{{6,}}-\d{{4,}}-\d{{4}}-\d\d-\d\d\.jsonl|{_CLOSED_FACTS}",
    "manifests": rf"{_DAY}\.json",
    "rejects": rf"{_DAY}\.jsonl",
    "journal": rf"{_SEGMENT}(\.sealed)?\.journal|ballast|synced|aside(/.+)?",
    "cursors": rf"{_OF_SINKS}|\.sinks\.lock|mirrored(/{_DAY}\.json)?",
    # Whatever is under construction begins with what it is of, or ends with the process that writes it.
    "staging": rf"upkeep\.lock|((trades|csv|raw)\.)?{_DAY}\..+|{_SEGMENT}\..+"
    rf"|({_SMALL}|{_OF_SINKS}|{_CLOSED_FACTS})\.\d+",
}
"""What may stand in each folder of a root, and in the root itself: whole names below it."""
_OWN_PATTERNS = {folder: re.compile(pattern) for folder, pattern in _OWN.items()}
_SET_ASIDE = re.compile(r"\..+\.damaged(-\d+)?")


def is_own(name: str) -> bool:
    """Whether a recorder gives this name, as it is below the root, to a file or a folder of its own."""
    folder, slash, rest = name.partition("/")
    if _SET_ASIDE.fullmatch(name.rpartition("/")[2]):
        return True
    if not slash and folder in _OWN:
        return True
    pattern = _OWN_PATTERNS.get(folder if slash else "")
    found = pattern.fullmatch(rest if slash else folder) if pattern else None
    if found is None:
        return False
    told = found.groupdict()
    if (segment := told.get("segment")) and segment_of(segment) is None:
        return False
    try:
        return not told.get("day") or bool(date.fromisoformat(told["day"]))
    except ValueError:
        return False


def list_cursors(layout: Layout) -> list[Path]:
    """The cursors of all sinks that there have been."""
    return sorted(path for path in layout.cursors.glob("*.json") if is_own(f"cursors/{path.name}"))


def list_rejects(layout: Layout) -> list[Path]:
    """The files of rejects, oldest first."""
    return sorted(path for path in layout.rejects.glob("date=*.jsonl") if is_own(f"rejects/{path.name}"))


def list_foreign(layout: Layout, depth: int = 2, damaged: list[DamagedFile] | None = None) -> Iterator[str]:
    """The names below the root, so many folders deep, that are none of ours; of a foreign folder only its own, with a
    `/`. Folders that can't be listed come to `damaged`. Raises OSError where that is the root.
    """
    for path in sorted(layout.root.iterdir()):
        yield from _foreign_in(layout, path, depth, [] if damaged is None else damaged)


def _foreign_in(layout: Layout, path: Path, depth: int, damaged: list[DamagedFile]) -> Iterator[str]:
    name = path.relative_to(layout.root).as_posix()
    is_folder = path.is_dir() and not path.is_symlink()
    if not is_own(name):
        yield f"{name}/" if is_folder else name
    elif is_folder and depth:
        try:
            entries = sorted(path.iterdir())
        except FileNotFoundError:  # compacted or deleted since it was listed
            return
        except OSError as error:
            damaged.append(DamagedFile(f"{path}: can't be read: {error.strerror}"))
            return
        for entry in entries:
            yield from _foreign_in(layout, entry, depth - 1, damaged)


def make_folder(path: Path) -> None:
    """Make this folder, and those above it, so that they survive a power cut. Raises OSError.

    A file in its place is set aside. A link that leads nowhere stays: what it leads to may only not be mounted.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    if path.exists():
        set_aside(path, "not a folder")
    if path.is_symlink():
        raise FileNotFoundError(errno.ENOENT, "a link to nothing", str(path))
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in this folder survive a power cut. Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows can't open one, and nobody records there
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        system.sync_whole(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make this file's bytes survive a power cut. Raises OSError."""
    fd = os.open(path, system.READ)
    try:
        system.sync_whole(fd)
    finally:
        os.close(fd)


def publish(staged: Path, final: Path) -> None:
    """Give a finished file its final name: after this it is whole under that name, or was never there. Raises OSError.

    A rename without the fsyncs leaves an empty file under the final name after a power cut, on ext4 and xfs alike.
    """
    sync_file(staged)
    make_folder(final.parent)
    if final.is_dir():  # which no file can replace
        set_aside(final, "a folder")
    staged.replace(final)
    sync_directory(final.parent)


def set_aside(path: Path, fault: str) -> None:
    """Give what stands in the place of a file or folder of ours another name, and say so. Raises OSError.

    The name begins with a dot, so that other programs don't take it for data.
    """
    aside = path.with_name(f".{path.name}.damaged")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f".{path.name}.damaged-{number}")
    path.rename(aside)
    log.warning("file.set_aside", file=str(path), fault=fault, now=aside.name)


def open_own(path: Path, flags: int) -> int:
    """Open a file of ours for writing; make it where it is missing. What is no file, or can't be opened by us, is set
    aside. Raises OSError.
    """
    flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo would wait for a reader
    try:
        fd = os.open(path, flags, FILE_MODE)
    except OSError as error:
        if not os.path.lexists(path) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
            raise
        fault = error.strerror or str(error)
    else:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        fault = "not a file"
    set_aside(path, fault)
    return os.open(path, flags, FILE_MODE)


def read_small(path: Path, parse: Callable[[bytes], _Content], limit: int = _SMALL_BYTES) -> _Content:
    """What `parse` makes of a small file of ours; whatever is in its place, this ends soon and takes little memory.

    Raises FileNotFoundError where there is none, DamagedFile where it can't be read or `parse` can't use it.
    """
    try:
        if isinstance(path, StorePath):
            content = path.read_bytes()
        else:
            fd = os.open(path, system.READ)  # a fifo would wait for a writer
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise DamagedFile(f"{path}: not a file")
                if status.st_size > limit:
                    raise DamagedFile(f"{path}: {status.st_size:,} bytes, where {limit:,} are the most to expect")
                content = os.read(fd, limit)
            finally:
                os.close(fd)
        return parse(content)
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedFile(f"{path}: a link to nothing") from None
        raise
    except OSError as error:
        raise DamagedFile(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise DamagedFile(f"{path}: not what belongs into it") from None


def check_is_file(path: Path) -> None:
    """Before a file is opened by its name: a fifo would wait for a writer. Raises DamagedFile where something else has
    the name, or a link to nothing; none of that where nothing has it.
    """
    if path.is_symlink() and not path.exists():
        raise DamagedFile(f"{path}: a link to nothing")
    if path.exists() and not path.is_file():
        raise DamagedFile(f"{path}: not a file")


def read_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file that grows, each with its end. Raises FileNotFoundError, DamagedFile."""
    check_is_file(path)
    try:
        with path.open("rb") as file:
            while (line := file.readline(_LINE_BYTES)).endswith(b"\n"):
                yield line
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(f"{path}: can't be read: {error.strerror}") from None
    if len(line) == _LINE_BYTES:
        raise DamagedFile(f"{path}: a line of more than {_LINE_BYTES:,} bytes")


def set_mode(path: Path, mode: int) -> None:
    """Give a finished file its mode; where that can't be done (another's drive, exFAT), say so, and leave it."""
    try:
        path.chmod(mode)
    except OSError as error:
        log.warning("mode.refused", file=str(path), mode=f"{mode:04o}", error=error.strerror)


def remove_tree(path: Path, turned: Callable[[], None] = lambda: None) -> None:
    """Remove what is left over, whatever it is; what can't be removed is told, and left. `turned` is called for each
    file of it, since a slow disk takes long for many.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            for entry in path.iterdir():
                turned()
                if not entry.is_dir() or entry.is_symlink():
                    entry.unlink()
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("leftover.kept", file=str(path), error=error.strerror or str(error))


def write_whole(path: Path, text: str, staging: Path) -> None:
    """Replace a small file by this text, whole or not at all. Raises OSError."""
    staged = staging / f"{path.name}.{os.getpid()}"
    fd = open_own(staged, os.O_WRONLY | os.O_TRUNC)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    publish(staged, path)


@dataclass(frozen=True, slots=True)
class Holder:
    """The recorder that holds a root."""

    pid: int
    health: str | None = None
    """`host:port` where it answers."""


class RootLock:
    """A root that is ours; what its lock's file says of us is for others to read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def deleted(self) -> bool:
        """Whether somebody has deleted the root, or its lock: whatever is written now is seen by nobody."""
        return os.fstat(self._fd).st_nlink == 0

    def announce(self, health: str | None) -> None:
        """Say who holds the root, and where it answers. Raises OSError."""
        text = json.dumps({"pid": os.getpid(), "health": health}).encode()
        os.pwrite(self._fd, text.ljust(_LOCK_BYTES), 0)


@contextlib.contextmanager
def locked_root(layout: Layout) -> Iterator[RootLock]:
    """Hold this root as its one recorder. Raises RootLocked naming the other's pid, ConfigError where this user may not
    open the lock, OSError.
    """
    if layout.lock.is_symlink() or (layout.lock.exists() and not layout.lock.is_file()):
        set_aside(layout.lock, "not a file")  # a file that can't be opened is another's, who may hold it
    try:
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except PermissionError:
        hint = "run the recorder as the user whom the root belongs to"
        raise ConfigError(f"{layout.lock}: permission denied: {hint}") from None
    try:
        for _ in range(_LOCK_ATTEMPTS):  # whoever only looks who holds it locks it for an instant
            if try_lock(fd):
                break
            time.sleep(_LOCK_RETRY_S)
        else:
            pid = _read_holder(fd).pid or "unknown"
            raise RootLocked(
                f"{layout.root} is being recorded by process {pid}; one root has one recorder: "
                "stop that one, or give this one another storage.root"
            )
        lock = RootLock(fd)
        lock.announce(health=None)
        yield lock
    finally:
        os.close(fd)


def read_holder(layout: Layout) -> Holder | None:
    """The recorder that holds this root now; None where none does. Raises OSError where that can't be seen."""
    try:
        fd = os.open(layout.lock, system.READ)
    except FileNotFoundError:
        return None
    try:
        return None if try_lock(fd, shared=True) else _read_holder(fd)
    finally:
        os.close(fd)


def try_lock(fd: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock this file, or see that another has it. Where the file system knows no locks, it is as if nobody else were
    there, and that is told. Raises OSError.
    """
    try:
        system.flock(fd, shared=shared, wait=wait)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        file = Path(f"/proc/self/fd/{fd}").resolve()
        log.warning(
            "lock.unknown", file=str(file), error=error.strerror, hint="two recorders here would not see each other"
        )
    return True


def _read_holder(fd: int) -> Holder:
    try:
        told = json.loads(system.pread(fd, _LOCK_BYTES, 0))
        health = told.get("health")
        return Holder(int(told["pid"]), health if isinstance(health, str) else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Holder(0)  # it has the lock, and has not said so yet, or what it said is damaged


@contextlib.contextmanager
def locked_date(layout: Layout, day: date) -> Iterator[None]:
    """Hold a date of the dataset while its files change: publish, compaction and retention exclude each other."""
    fd = open_own(layout.staging / f"date={day.isoformat()}.lock", os.O_RDWR)
    try:
        try_lock(fd, wait=True)
        yield
    finally:
        os.close(fd)
