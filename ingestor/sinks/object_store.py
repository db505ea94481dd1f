"""A mirror of the dataset in an object store or another directory. Exactly once between compactions.

Trades are there under their names (`date=…/…`), and under `_recording/` all that proves them: coverage, accounts,
rejects, raw frames, the ledger, and a manifest per closed day, written once the day's copy was read back. Of days that
are not closed the ledger goes there as it stood when the newest row that is mirrored was received: it vouches for
nothing that is not there.

Several recorders may share a place: each mirrors into a folder `root=<its name>`, which is one more column to a reader
of the whole. So no file of one has the name of another's, and none is removed but by its own recorder.

Only finished files are mirrored. Each is written beside the dataset and moved into its place when its size is right:
an error inside an open stream would else publish a part. A file goes when compaction has put another in its place, or
when the ledger says that retention deleted its day; never because it is missing here.

With `table: delta` the place is a Delta table (`delta_table`), and so is the coverage in it. A file then leaves the
table first, and goes ten minutes later: whoever reads through the table has opened it by then.
"""

import contextlib
import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import structlog
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from ingestor import closed_days, ledger
from ingestor.errors import DamagedFile, SinkUnavailable
from ingestor.facts import Fact, decode_line, encode_line
from ingestor.journal.follower import Damage, Rows, SegmentEnd
from ingestor.journal.records import Cursor
from ingestor.layout import Layout, SegmentId, is_own, list_rejects, list_segments, make_folder, write_whole
from ingestor.sinks import advise, delta_table
from ingestor.store import MIRROR, join_place, mirrored_name, name_in_root, open_place

_PASS_S = 2.0
_PROOF_S = 10.0
_PIECE = 1 << 22
_STAGING = ".staging"
_OWNER = ".recorded-by"
_ROOT_FOLDER = "root="
_DAY = timedelta(days=1)
_REST = timedelta(days=5)
_GRACE_S = 600.0
_COVERAGE = f"{MIRROR}/coverage"

Retention = Literal["disk", "forever"]
Table = Literal["none", "delta"]

log = structlog.get_logger()


class ObjectStore:
    """An open link to the place of the mirror. After an error it is of no use any more."""

    name = "object_store"

    def __init__(
        self,
        uri: str,
        layout: Layout,
        root: str,
        *,
        shared: bool = False,
        retention: float | Retention = "disk",
        table: Table = "none",
    ) -> None:
        """Look what is there. `shared`: others mirror to this place, too. `retention`: how many seconds trades stay
        there, or as long as on the disk, or for ever. `table`: what the place is beside a folder of files.

        Raises SinkUnavailable, also where the place is another root's.
        """
        self._layout = layout
        self._pass_due_s = self._proof_due_s = -math.inf
        self._ended = self._committed = Cursor(0, 0)
        self._mirrored: dict[str, int] | None = None
        """What was here at the last pass."""
        self._root = root
        self._retention = retention
        self._proved: tuple[list[SegmentId], list[str], int | None] | None = None
        """The state of the ledger at which all else was last brought."""
        self._due: list[date] = []
        """Closed days that have no manifest yet."""
        self._brought: set[str] = set()
        self._leaving: dict[str, float] = {}
        """No more in the table, and when they may go."""
        self._registered = False
        """Whether the tables are as the files are."""
        self._prefix = f"{_ROOT_FOLDER}{root}/" if shared else ""
        self._trades_table = self._coverage_table = None
        if table == "delta":
            self._trades_table = delta_table.DeltaTable(uri, {"root": root} if shared else {})
            self._coverage_table = delta_table.DeltaTable(join_place(uri, f"{self._prefix}{_COVERAGE}"), {})
        with _translated(uri):
            self._files, place = open_place(uri)
            self._base = f"{place}/{_ROOT_FOLDER}{root}" if shared else place
            selector = pafs.FileSelector(self._base, recursive=True, allow_not_found=True)
            there = {
                found.path.removeprefix(f"{self._base}/"): (found.size, found.mtime_ns or 0)
                for found in self._files.get_file_info(selector)
                if found.type == pafs.FileType.File
            }
            if table == "none" and self._is_there(f"{place}/{delta_table.LOG}"):
                hint = f"set sinks.object_store.table: delta, or delete the folder {delta_table.LOG} there"
                raise SinkUnavailable(f"{uri} is a Delta table, which would be wrong from now on: {hint}")
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
            # What somebody else has put there is left as it is.
            there = {name: told for name, told in there.items() if is_own(name_in_root(name) or "")}
            self._there = {name: size for name, (size, _) in there.items() if name.startswith("date=")}
            self._others = {name: told for name, told in there.items() if name.startswith(f"{MIRROR}/")}
            """Size, and when it was brought; of what this object brought, size and time of the file here."""
            self._coverage = {
                name.removeprefix(f"{_COVERAGE}/"): delta_table.TableFile(size, _to_ms(at_ns))
                for name, (size, at_ns) in there.items()
                if name.startswith(f"{_COVERAGE}/date=")
            }

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
        # Before the files are listed: whatever is sealed now is among them.
        open_before = [file.id for file in list_segments(self._layout) if not file.sealed]
        with _translated(self._base):
            here, unsealed = _list_here(self._layout)
            if here != self._mirrored:
                self._mirror_trades(here, now_s)
            self._mirror_proof(here, open_before, now_s)
            self._register()
            # At a stop, whose time is infinite, nothing goes: the next start finds it.
            for name in [name for name, due_s in self._leaving.items() if due_s <= now_s < math.inf]:
                self._remove(name)
                del self._leaving[name]
                self._proved = None  # the day may get its manifest now
        first_unsealed = min((number for number in unsealed if number < self._ended.segment), default=None)
        self._committed = self._ended if first_unsealed is None else Cursor(first_unsealed, 0)

    def committed(self) -> Cursor:
        return self._committed

    def close(self) -> None:
        """Nothing: a file is there, or it isn't."""

    # Trades

    def _mirror_trades(self, here: dict[str, int], now_s: float) -> None:
        first = self._first_kept({_day_of(name) for name in (*here, *self._there)})
        kept = {name: size for name, size in here.items() if _day_of(name) >= first}
        for name, size in sorted(kept.items()):
            if self._there.get(name) != size:
                self._reopen(_day_of(name))
                self._bring(name)
        # After what replaces it is there: at no moment does the mirror lack rows.
        replaced = {_day_of(name) for name in kept}
        missing = [name for name in self._there if name not in kept]
        lost = {_day_of(name) for name in missing} - replaced
        expired = {day for day in lost if day < first}
        if self._retention == "disk" and lost:
            expired |= lost & _read_deleted(self._layout)
        for day in sorted(expired):
            # The manifest says that the trades of this day are gone on purpose.
            self._reopen(day)
            manifest = closed_days.Manifest(day.isoformat(), self._root, (), 0, "", trades_deleted=True)
            self._put(_manifest_name(day), manifest.encode())
            self._others[_manifest_name(day)] = 0, 0
        for name in missing:
            if _day_of(name) in replaced:
                self._reopen(_day_of(name))
            if _day_of(name) in replaced | expired:
                del self._there[name]
                if self._trades_table is None:
                    self._remove(name)
                else:
                    self._leaving[name] = now_s + _GRACE_S
        self._mirrored, self._registered = here, False

    def _remove(self, name: str) -> None:
        self._files.delete_file(f"{self._base}/{name}")
        log.info("mirror.removed", file=name)

    def _register(self) -> None:
        """Make the tables as the files are."""
        if self._registered or self._trades_table is None or self._coverage_table is None:
            return
        files = {f"{self._prefix}{name}": delta_table.TableFile(size) for name, size in self._there.items()}
        place = self._base.removesuffix(f"/{self._prefix[:-1]}")
        for kind, table, wanted, folder in (
            ("trades", self._trades_table, files, place),
            ("coverage", self._coverage_table, self._coverage, f"{self._base}/{_COVERAGE}"),
        ):
            if changes := table.commit(wanted, partial(self._read_footer, folder)):
                log.info("table.committed", table=kind, files=changes)
        self._registered = True

    def _read_footer(self, folder: str, name: str) -> pq.FileMetaData:
        with self._files.open_input_file(f"{folder}/{name}") as file:
            return pq.read_metadata(file)

    def _first_kept(self, days: Collection[date]) -> date:
        """The first day that the mirror's own retention keeps. No clock is believed alone: a day goes once the newest
        trade, too, is so much later, but for a long weekend.
        """
        if isinstance(self._retention, str) or not days:
            return date.min
        newest = datetime.combine(max(days), datetime.min.time(), UTC) + _DAY + _REST
        return (min(datetime.now(UTC), newest) - timedelta(seconds=self._retention) - _DAY).date() + _DAY

    # All that is not trades

    def _mirror_proof(self, here: dict[str, int], unsealed: list[SegmentId], now_s: float) -> None:
        """When a segment was sealed, a day was closed or the recorder has stopped since, but not at each of many
        segments; then, of one closed day in each pass, the manifest.
        """
        layout = self._layout
        ledgers = ledger.list_ledger_files(layout)
        newest = ledgers[-1].path.stat().st_size if ledgers and not unsealed else None
        state = (unsealed[:1], [file.path.name for file in ledgers], newest)
        if state != self._proved and now_s >= self._proof_due_s:
            self._proof_due_s = now_s + _PROOF_S
            copies, horizon = copy_ledger(ledgers, unsealed[0].number if unsealed else None)
            closed = [day for day in closed_days.list_closed_days(layout) if horizon is None or day < horizon]
            for day in closed:
                self._bring_file(layout.coverage_file(day))
            names = {f"{segment}.parquet" for segment in unsealed}
            for kind in (layout.accounts, layout.raw):
                first = self._first_kept({_day_of(name) for name in here}) if kind == layout.raw else date.min
                found = sorted(
                    path for path in kind.glob("date=*/*.parquet") if is_own(path.relative_to(layout.root).as_posix())
                )
                paths = [path for path in found if path.name not in names and _day_of(path.parent.name) >= first]
                for path in paths:
                    self._bring_file(path)
                self._remove_gathered(kind, paths)
            self._remove_expired_frames({_day_of(name) for name in here})
            for path in [*list_rejects(layout), *ledger.list_closed_facts(layout), layout.holidays]:
                self._bring_file(path)
            for file_name, content in copies.items():
                name, known = mirrored_name(f"ledger/{file_name}"), (len(content), zlib.crc32(content))
                if self._others.get(name) != known:
                    self._put(name, content)
                    self._others[name] = known
            self._remove_closed({file.path.name for file in ledgers})
            self._proved = state
            open_from = min((segment.started.date() for segment in unsealed), default=date.max)
            days = {_day_of(name) for name in here if name in self._there}
            days -= {_day_of(name) for name in self._leaving}  # what is there beside what a manifest names
            due = [day for day in closed if day < open_from and day in days]
            vouched = {day for day in due if _manifest_name(day) in self._others}
            self._due = [day for day in due if day not in vouched or not closed_days.is_mirrored(self._layout, day)]
        if self._due:
            self._write_manifest(self._due.pop(), here)

    def _bring_file(self, path: Path) -> None:
        """One of the files that are not trades, where it is not there as it is here."""
        name = mirrored_name(str(path.relative_to(self._layout.root)))
        try:
            found = path.stat()
            content_of = found.st_size, found.st_mtime_ns
            there = self._others.get(name)
            if there == content_of:
                return
            if there and name not in self._brought and there[0] == found.st_size and there[1] >= found.st_mtime_ns:
                return
            file = path.open("rb")
        except FileNotFoundError:  # gathered since it was listed, or there are none
            return
        with file:
            if "date=" in name:
                self._reopen(_day_of(name))
            sent = self._put(name, file)
        self._others[name] = content_of
        self._brought.add(name)
        if name.startswith(_COVERAGE):
            placed = self._files.get_file_info(f"{self._base}/{name}")
            self._coverage[name.removeprefix(f"{_COVERAGE}/")] = delta_table.TableFile(
                placed.size, _to_ms(placed.mtime_ns)
            )
            self._registered = False
        log.info("mirror.brought", file=name, bytes=sent)

    def _remove_gathered(self, kind: Path, paths: list[Path]) -> None:
        """Files of a date that are no more here, where other files of that date are."""
        here = {mirrored_name(str(path.relative_to(self._layout.root))) for path in paths}
        folders = {name.rpartition("/")[0] for name in here}
        prefix = f"{MIRROR}/{kind.name}/"
        gone = [name for name in self._others if name.startswith(prefix) and name not in here]
        for name in gone:
            if name.rpartition("/")[0] in folders:
                self._reopen(_day_of(name))
                self._files.delete_file(f"{self._base}/{name}")
                del self._others[name]

    def _remove_expired_frames(self, days: Collection[date]) -> None:
        """Raw frames stay as long as trades do: `disk` means until the ledger says that they were deleted here.

        `days` are those of trades here. Where only the mirror has the trades nobody could write the manifest anew:
        such a day stays as it is.
        """
        folder = self._layout.raw
        prefix = mirrored_name(f"{folder.name}/")
        held = {name: _day_of(name) for name in self._others if name.startswith(prefix)}
        first = self._first_kept({*days, *held.values()})
        expired = {day for day in held.values() if day < first}
        lost = {day for day in held.values() if not folder.joinpath(f"date={day.isoformat()}").is_dir()}
        if self._retention == "disk" and lost:
            expired |= lost & _read_deleted(self._layout, "raw.deleted")
        expired -= {_day_of(name) for name in self._there}.difference(days)
        for name in [name for name, day in held.items() if day in expired]:
            if held[name] in days:
                self._reopen(held[name])
            self._files.delete_file(f"{self._base}/{name}")
            del self._others[name]
            log.info("mirror.removed", file=name)

    def _remove_closed(self, here: Collection[str]) -> None:
        """Files of the ledger whose day is data, here and there."""
        prefix = f"{MIRROR}/ledger/"
        for name in [name for name in self._others if name.startswith(prefix)]:
            file = ledger.parse_ledger_name(Path(name))
            if file is None or file.path.name in here or not file.checked:
                continue
            if mirrored_name(f"coverage/date={file.day}/coverage.parquet") in self._others:
                self._files.delete_file(f"{self._base}/{name}")
                del self._others[name]

    # Manifests

    def _reopen(self, day: date) -> None:
        """What is there of this day is about to change: nothing vouches for it meanwhile."""
        closed_days.mirrored_manifest(self._layout, day).unlink(missing_ok=True)
        if _manifest_name(day) in self._others:
            self._files.delete_file(f"{self._base}/{_manifest_name(day)}")
            del self._others[_manifest_name(day)]

    def _write_manifest(self, day: date, here: dict[str, int]) -> None:
        """Read the copy of a closed day back, bring again what is not as it is here, and write down what is there."""
        layout = self._layout
        files = {f"trades/{name}": layout.trades / name for name in here if _day_of(name) == day}
        files |= closed_days.list_day_files(layout, day)
        try:
            manifest = closed_days.make_manifest(day, self._root, files, mirror=True)
        except FileNotFoundError:  # compacted since it was listed
            return
        except DamagedFile as error:  # which `verify` names: nothing vouches for it
            log.error("manifest.refused", day=day.isoformat(), error=str(error))
            return
        for name, one in zip(sorted(files), manifest.files, strict=True):
            with self._files.open_input_stream(f"{self._base}/{one.path}") as stream:
                if closed_days.hash_file(stream) == one.sha256:
                    continue
            log.warning("mirror.damaged", file=one.path)
            self._put(one.path, files[name].read_bytes())
            self._due.append(day)  # the next pass reads it once more
            return
        self._put(_manifest_name(day), manifest.encode())
        self._others[_manifest_name(day)] = 0, 0
        path = closed_days.mirrored_manifest(layout, day)
        make_folder(path.parent)
        write_whole(path, manifest.encode().decode(), layout.staging)
        log.info("mirror.verified", day=day.isoformat(), files=len(manifest.files), rows=manifest.rows)

    # Files

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

    def _put(self, name: str, content: bytes | BinaryIO) -> int:
        """Whole under this name, or not at all; its size. A file is brought in pieces: rejects may be a gigabyte.
        Raises OSError.
        """
        staged = f"{self._base}/{_STAGING}/{name.replace('/', '.')}.part"
        final = f"{self._base}/{name}"
        if isinstance(self._files, pafs.LocalFileSystem):  # a store has no folders to make
            for path in (staged, final):
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
        sent = 0
        with self._files.open_output_stream(staged) as stream:
            for piece in [content] if isinstance(content, bytes) else iter(partial(content.read, _PIECE), b""):
                stream.write(piece)
                sent += len(piece)
        size = self._files.get_file_info(staged).size
        if size != sent:
            raise OSError(f"{staged} has {size} bytes, not {sent}")
        self._files.move(staged, final)
        return sent

    def _is_there(self, path: str) -> bool:
        return bool(self._files.get_file_info(path).type != pafs.FileType.NotFound)


def _list_here(layout: Layout) -> tuple[dict[str, int], list[int]]:
    """The sizes of the files of segments for which the dataset speaks, and the numbers of all other segments.

    The names first: what is listed then, and is not unsealed after that, is committed.
    """
    found = {}
    for path in layout.trades.glob("date=*/*.parquet"):
        name = f"{path.parent.name}/{path.name}"
        if is_own(f"{layout.trades.name}/{name}"):
            with contextlib.suppress(FileNotFoundError):  # compacted or deleted since it was listed
                found[name] = path.stat().st_size
    unsealed = [file.id for file in list_segments(layout) if not file.sealed]
    names = {f"{segment}.parquet" for segment in unsealed}
    here = {name: size for name, size in found.items() if name.partition("/")[2] not in names}
    return here, [segment.number for segment in unsealed]


def copy_ledger(files: Sequence[ledger.LedgerFile], first_open: int | None) -> tuple[dict[str, bytes], date | None]:
    """The files of the ledger, by name, as they stood when the newest row of a segment before `first_open` (None: of
    all) was received: what they say of later times may not be mirrored yet. And the date of that moment; None where the
    recorder has stopped and all is there.
    """
    lines: list[tuple[str, bytes, Fact | None]] = []
    for file in files:
        if file.checked:  # what is left of format 1 becomes data soon
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                whole = file.path.read_bytes().splitlines(keepends=True)
                lines += [(file.path.name, line, decode_line(line.decode(errors="replace"))) for line in whole]
    facts = [fact for *_, fact in lines if fact is not None]
    horizon_us, last = 0, 0
    for number, (*_, fact) in enumerate(lines):
        if fact is None or fact["fact"] != "segment.closed":
            continue
        if first_open is None or SegmentId.parse(fact["segment"]).number < first_open:
            horizon_us, last = max(horizon_us, fact.get("last_received") or 0), number
    stopped = first_open is None and bool(facts) and facts[-1]["fact"] == "run.stopped"
    copies: dict[str, list[bytes]] = {}
    at_us = 0
    for number, (name, line, fact) in enumerate(lines):
        at_us = at_us if fact is None else fact["at"]
        if not stopped and number > last and fact and fact["fact"] == "clock.stepped" and fact.get("by_us", 0) < 0:
            break  # what comes then may be later than it says
        if line.endswith(b"\n") and (stopped or at_us <= horizon_us):
            copies.setdefault(name, []).append(line)
    if copies and not stopped:  # else it would end with the last fact
        copies[max(copies)].append(encode_line({"at": horizon_us, "fact": "ledger.copied"}).encode())
    joined = {name: b"".join(kept) for name, kept in copies.items()}
    return joined, None if stopped else ledger.day_of(horizon_us)


def _read_deleted(layout: Layout, fact: str = "day.deleted") -> set[date]:
    """The days that retention has deleted here: whole days, and the ledger says so. Raises OSError."""
    facts = ledger.read_all_facts(layout, '"fact":"s')
    return {date.fromisoformat(told["date"]) for told in facts if told["fact"] == fact}


def _day_of(name: str) -> date:
    """The date of a file there, of any kind."""
    return date.fromisoformat(name.partition("date=")[2][:10])


def _to_ms(at_ns: int | None) -> int:
    return (at_ns or 0) // 1_000_000


def _manifest_name(day: date) -> str:
    return f"{MIRROR}/manifests/date={day.isoformat()}.json"


ADVICE = {  # by its words: see `advise`
    "ACCESS_DENIED": "check the credentials, and what they may do there",
    "AccessDenied": "check the credentials, and what they may do there",
    "HTTP status 403": "check the credentials, and what they may do there",
    "SignatureDoesNotMatch": "check the secret key, and this computer's clock",
    "RequestTimeTooSkewed": "set this computer's clock",
    "NO_SUCH_BUCKET": "make the bucket, or correct sinks.object_store.uri",
    "bucket does not exist": "make the bucket, or correct sinks.object_store.uri",
    "permission denied": "let the recorder's user write there",
    "read-only file system": "give sinks.object_store.uri a place that can be written",
    "no space left": "make room there",
}


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    """What the store refuses is SinkUnavailable."""
    try:
        yield
    except OSError as error:
        raise SinkUnavailable(advise(f"{place}: {error}", ADVICE)) from error
