"""The damage table: whatever the files of a root look like, a recording starts, records and stops; readers name what
they can't read; `verify` finds it.

Each kind of file is damaged in every way (a few ways per kind in the short form, one in the quick tier; all of them
with CHAOS_ROUNDS). To add a kind of file: make it in `make_root_of_all_kinds` if it isn't there, and add a line to
KINDS.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import environ, running_venue
from journals import FAST_DISK, NOON, Clock, Life, make_root
from requirements import of_tier

from ingestor.capture.rejects import Refused, Rejects
from ingestor.closed_days import close_days
from ingestor.dataset.compact import compact_days
from ingestor.layout import Layout, list_segments
from ingestor.ledger import list_ledgers
from ingestor.sinks.retention_slots import name_root

LONG = "CHAOS_ROUNDS" in os.environ
TODAY = datetime.now(UTC).date()
YESTERDAY = datetime.combine(TODAY - timedelta(days=1), datetime.min.time(), UTC) + timedelta(hours=12)


# The ways to damage a file


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _flipped(place: Callable[[int], int]) -> Callable[[Path], None]:
    def flip(content: bytes) -> bytes:
        if not content:
            return b"\4"
        at = place(len(content)) % len(content)
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return _rewritten(flip)


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        _remove(path)
        make(path)

    return damage


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


FILE_DAMAGES: dict[str, Callable[[Path], None]] = {
    "half": _rewritten(lambda content: content[: len(content) // 2]),
    "empty": _rewritten(lambda _: b""),
    "zeros": _rewritten(lambda content: bytes(len(content))),
    "bit at the head": _flipped(lambda _: 1),
    "bit in the middle": _flipped(lambda length: length // 2),
    "bit at the tail": _flipped(lambda length: length - 3),
    "junk": _rewritten(lambda content: bytes((at * 7919 + 13) % 251 for at in range(len(content)))),
    "a byte more": _rewritten(lambda content: content + b"x"),
    "a folder": _replaced(Path.mkdir),
    "a dangling link": _replaced(lambda path: path.symlink_to("/nonexistent/disk/that/is/not/mounted")),
    "no permission": lambda path: path.chmod(0),
    "huge": lambda path: os.truncate(path, 6 << 30),
    "deleted": _remove,
    "a fifo": _replaced(os.mkfifo),
    "deep JSON": _rewritten(lambda _: b"[" * 100_000),
    "infinite numbers": _rewritten(
        lambda _: (
            b'{"at":1e999,"fact":"run.started","segment":1e999,"offset":-1e999,"bytes":NaN,"from":[1e999,0],'
            b'"to":[1e999,0],"pid":1e999}\n'
        )
    ),
    "huge numbers": _rewritten(
        lambda _: (
            b'{"at":1%(n)b,"fact":"run.started","segment":1%(n)b,"offset":1%(n)b,"bytes":1%(n)b,"from":[1%(n)b,0],'
            b'"to":[1%(n)b,0],"pid":1%(n)b}\n' % {b"n": b"0" * 30}
        )
    ),
    "JSON of another shape": _rewritten(lambda _: b'{"at":5,"fact":"run.started","segment":[1],"hashes":7}\n'),
}
FOLDER_DAMAGES: dict[str, Callable[[Path], None]] = {
    "a file": _replaced(lambda path: path.write_bytes(b"not a folder")),
    "a dangling link": FILE_DAMAGES["a dangling link"],
    "no permission": FILE_DAMAGES["no permission"],
    "deleted": _remove,
    "a fifo": FILE_DAMAGES["a fifo"],
}


# The kinds of file


@dataclass(frozen=True)
class Kind:
    """A kind of file in a root, and what is to be expected of it."""

    find: Callable[[Layout], Path]
    folder: bool = False
    sinks: bool = False
    """The recorder has an external sink."""
    unseen: frozenset[str] = frozenset()
    """Damages that `verify` need not find: nothing is lost or untrue by them."""
    refused: frozenset[str] = frozenset()
    """Damages after which the recorder may refuse to start, in one sentence."""


EVERY = frozenset({*FILE_DAMAGES, *FOLDER_DAMAGES})
GONE = frozenset({"deleted"})


def _first(layout: Layout, pattern: str) -> Path:
    return min(layout.root.glob(pattern))


def _last(layout: Layout, pattern: str) -> Path:
    return max(layout.root.glob(pattern))


def _segment(layout: Layout, *, sealed: bool) -> Path:
    return next(file.path for file in list_segments(layout) if file.sealed is sealed)


KINDS: dict[str, Kind] = {
    "part": Kind(lambda layout: _first(layout, f"trades/date={TODAY}/0*.parquet")),
    "part beside a compacted one": Kind(
        lambda layout: _first(layout, f"trades/date={NOON:%Y-%m-%d}/0*.parquet"), unseen=EVERY
    ),
    "compacted": Kind(
        lambda layout: _first(layout, f"trades/date={NOON:%Y-%m-%d}/compacted-*.parquet"),
        unseen=GONE,  # the part beside it speaks, and its segment's account is compared
    ),
    "csv": Kind(lambda layout: _first(layout, "csv/date=*/*.csv")),
    "csv.gz": Kind(lambda layout: _first(layout, "csv/date=*/*.csv.gz")),
    "sealed segment": Kind(lambda layout: _segment(layout, sealed=True), sinks=True, unseen=EVERY),
    "unsealed segment": Kind(lambda layout: _segment(layout, sealed=False), unseen=EVERY),
    "synced": Kind(lambda layout: layout.synced, unseen=EVERY),
    "ballast": Kind(lambda layout: layout.ballast, unseen=EVERY),
    "lock": Kind(lambda layout: layout.lock, unseen=EVERY, refused=frozenset({"no permission"})),
    "state": Kind(lambda layout: layout.state, unseen=EVERY),
    "coverage of a closed day": Kind(lambda layout: _first(layout, "coverage/date=*/coverage.parquet"), unseen=GONE),
    "account": Kind(lambda layout: _first(layout, "accounts/date=*/0*.parquet"), unseen=EVERY),
    "closed accounts": Kind(lambda layout: _first(layout, "accounts/date=*/closed-*.parquet"), unseen=EVERY),
    "facts of closed days": Kind(lambda layout: _first(layout, "ledger/closed-*.jsonl"), unseen=EVERY),
    "newest ledger": Kind(lambda layout: list_ledgers(layout)[-1], unseen=EVERY),
    "first ledger": Kind(lambda layout: list_ledgers(layout)[0], unseen=EVERY),
    "cursor of csv": Kind(lambda layout: layout.cursor_file("csv"), unseen=EVERY),
    "cursor of a sink": Kind(lambda layout: layout.cursor_file("sqlite"), sinks=True, unseen=EVERY),
    "cursor of a sink that is no longer": Kind(lambda layout: layout.cursor_file("kafka"), unseen=EVERY),
    "lost note": Kind(lambda layout: layout.cursors / "sqlite.2.lost", sinks=True, unseen=EVERY),
    "rejects": Kind(lambda layout: _last(layout, "rejects/date=*.jsonl"), unseen=frozenset({"bit in the middle"})),
    "rejects of today": Kind(lambda layout: layout.rejects_file(TODAY), unseen=EVERY),
    "holidays": Kind(lambda layout: layout.holidays, unseen=EVERY),
    "accepted keys": Kind(lambda layout: layout.accepted_keys, unseen=EVERY),
    "name": Kind(lambda layout: layout.root_name, sinks=True, unseen=EVERY),
    "sinks' lock": Kind(lambda layout: layout.sinks_lock, sinks=True, unseen=EVERY),
    "upkeep lock": Kind(lambda layout: layout.staging / "upkeep.lock", unseen=EVERY),
    "lock of a date": Kind(lambda layout: layout.staging / f"date={TODAY}.lock", unseen=EVERY),
    "left in staging": Kind(lambda layout: layout.staging / "left.parquet", unseen=EVERY),
    "stray name in trades": Kind(lambda layout: layout.trades / "stray.txt", unseen=GONE),
    "stray name in journal": Kind(lambda layout: layout.journal / "stray.txt", unseen=EVERY),
    "stray name in cursors": Kind(lambda layout: layout.cursors / "stray.json", unseen=EVERY),
    "trades": Kind(lambda layout: layout.trades, folder=True, refused=frozenset({"no permission"})),
    "trades of today": Kind(lambda layout: layout.trades / f"date={TODAY}", folder=True),
    "folder left in staging": Kind(
        lambda layout: layout.staging / f"date={TODAY}.compacted", folder=True, unseen=EVERY
    ),
    **{
        name: Kind(
            lambda layout, name=name: layout.root / name,  # type: ignore[misc]
            folder=True,
            unseen=EVERY,
            refused=frozenset({"no permission", "a dangling link"}),
        )
        for name in (
            "csv",
            "cursors",
            "coverage",
            "accounts",
            "ledger",
            "rejects",
            "staging",
            "journal",
            "journal/aside",
        )
    },
}
ELSEWHERE: dict[str, str] = {}
"""Kinds of which some rows are yet to be mended, and why: whoever mends the last of a kind takes its line out."""


def make_root_of_all_kinds(root: Path) -> Layout:
    """Two closed days and today: compacted, parts, CSV packed and not, rejects, a crash, sinks that are behind."""
    layout = make_root(root)
    received_us = round(NOON.timestamp() * 1e6)
    life = Life(layout)
    for _ in range(2):
        life.writer.append(300)
        life.writer.rotate()
    rejects = Rejects(layout, 1, 1 << 30)
    rejects.write([Refused(frame, None, "not_json", received_us, b"?" * 40) for frame in (600, 601)])
    rejects.close()
    life.writer.append(50, reasons={"not_json": 2})
    life.stop()
    kept = _first(layout, "trades/date=*/0*.parquet")
    content = kept.read_bytes()
    list(compact_days(layout, NOON.date() + timedelta(days=1)))
    kept.write_bytes(content)
    now = datetime.combine(TODAY, datetime.min.time(), UTC) + timedelta(seconds=1)
    life = Life(layout, clock=Clock(YESTERDAY))
    life.ledger.record("symbols.requested", connection=1, symbols=["AAPL"])
    life.writer.append(200, at=YESTERDAY)
    life.stop(compress=True)
    life = Life(layout, clock=Clock(now))
    life.writer.append(200, at=now)
    claimed = life.writer.path
    life.writer.rotate()
    content = claimed.read_bytes()
    life.writer.append(100, at=now)
    life.writer.journal.sync()
    life.drain()
    life.kill()
    list(close_days(layout, date.max))
    claimed.with_name(claimed.name.replace(".journal", ".sealed.journal")).write_bytes(content)
    layout.cursor_file("sqlite").write_text('{"segment": 5, "offset": 0}')
    layout.cursor_file("kafka").write_text('{"segment": 5, "offset": 0}')
    (layout.cursors / "stray.json").write_text('{"something": "else"}')
    (layout.cursors / "sqlite.2.lost").write_text('{"from": [1, 0], "to": [2, 0]}')
    layout.holidays.write_text('["2026-12-25"]')
    layout.accepted_keys.write_text('{"salt": "00112233445566778899aabbccddeeff", "hashes": []}')
    layout.rejects_file(TODAY).write_text("")
    layout.lock.write_text('{"pid": 1, "health": null}'.ljust(256))
    layout.ballast.write_bytes(bytes(1 << 12))
    for name in ("upkeep.lock", f"date={TODAY}.lock", "left.parquet"):
        (layout.staging / name).write_bytes(b"left")
    (layout.staging / f"date={TODAY}.compacted").mkdir()
    (layout.staging / f"date={TODAY}.compacted" / "000001").write_bytes(b"half made")
    for folder in (layout.journal, layout.trades):
        (folder / "stray.txt").write_text("something else")
    layout.aside.mkdir(exist_ok=True)
    layout.sinks_lock.touch()
    name_root(layout)
    return layout


# Playing the table


class Player:
    """Plays rows on copies of a root, in processes that are ready to."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._keys = self._rows = 0
        self.original = make_root_of_all_kinds(folder / "original")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("damage_rows.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ(),
        )

    def play(self, name: str, damages: dict[str, Callable[[Path], None]]) -> dict[str, list[str]]:
        """What is wrong, by damage."""
        kind = KINDS[name]
        roots: dict[str, Path] = {}
        places = {}
        for damage, inflict in damages.items():
            self._rows += 1
            root = roots[damage] = self._folder / f"row{self._rows}" / "data"
            shutil.copytree(self.original.root, root, symlinks=True)
            path = kind.find(Layout(root))
            places[damage] = str(path.relative_to(root))
            inflict(path)
        faults: dict[str, list[str]] = {damage: [] for damage in damages}
        for damage, result in zip(damages, self._ask("read", kind, roots.values()), strict=True):
            faults[damage] += _judge_reading(result, places[damage], find=damage not in kind.unseen)
        for damage, result in zip(damages, self._ask("run", kind, roots.values()), strict=True):
            faults[damage] += _judge_run(result, may_refuse=damage in kind.refused)
        for damage, result in zip(damages, self._ask("verify", kind, roots.values()), strict=True):
            faults[damage] += _judge_reading(result, places[damage], find=False)
        for root in roots.values():
            shutil.rmtree(root.parent, ignore_errors=True)  # a child of a recorder that hung may still write there
        return {damage: found for damage, found in faults.items() if found}

    def _ask(self, step: str, kind: Kind, roots: Any) -> list[dict[str, Any]]:
        rows = []
        for root in roots:
            self._keys += 1
            key = f"key-of-row-{os.getpid()}-{self._keys}"
            rows.append({"root": str(root), "step": step, "url": self._url, "key": key, "sinks": kind.sinks})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(rows) + "\n")
        self._process.stdin.flush()
        results: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return results

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _judge_run(result: dict[str, Any], *, may_refuse: bool) -> list[str]:
    told = result["told"]
    if result["hung"]:
        return [f"run: hung: {told[-300:]}"]
    if "Traceback" in told:
        return [f"run: code {result['code']}, a traceback: {told[-400:]}"]
    if result["code"] == 2 and may_refuse:
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        return [] if len(errors) == 1 else [f"run: refused with {errors}"]
    if result["code"] != 0:
        return [f"run: code {result['code']}: {told[-400:]}"]
    return [] if result["recorded"] else [f"run: recorded nothing: {told[-300:]}"]


def _judge_reading(result: dict[str, Any], place: str, *, find: bool) -> list[str]:
    if result["hung"] or result["code"] != 0:
        return [f"reading: hung {result['hung']}, code {result['code']}, after {result['told'][-300:]!r}"]
    faults = []
    for line in result["told"].splitlines():
        if not line.startswith('{"way"'):
            continue
        one = json.loads(line)
        if "traceback" in one:
            faults.append(f"{one['way']}: {one['traceback'].strip().splitlines()[-1]}")
        elif "error" in one and not _names(one["error"], place):
            faults.append(f"{one['way']}: does not name {place}: {one['error']}")
        elif (
            one["way"] == "verify"
            and find
            and "error" not in one
            and not any(_names(text, place) for text in one.get("differences", ()))
        ):
            faults.append(f"verify: does not find {place}: {one.get('differences')}")
    return faults


def _names(text: str, place: str) -> bool:
    """Whether a message names the file, or the folder that it can't be found in."""
    return place in text or Path(place).name.partition(".")[0] in text


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with (
        tempfile.TemporaryDirectory(dir=FAST_DISK) as folder,
        running_venue(Path(folder), "--any-key", "--rate", "100", "--limit", "100") as venue,
    ):
        player = Player(Path(folder), venue.url)
        try:
            yield player
        finally:
            player.close()


def _chosen(name: str) -> dict[str, Callable[[Path], None]]:
    """All damages in the long form, else two, in the quick tier one: other ones for each kind, so that each has its
    turn.
    """
    all_ = FOLDER_DAMAGES if KINDS[name].folder else FILE_DAMAGES
    if LONG:
        return all_
    at, names = list(KINDS).index(name), list(all_)
    chosen = [names[(at * 7 + step * 4) % len(names)] for step in range(of_tier(2, 1))]
    return {name: all_[name] for name in chosen}


def test_the_root_is_sound_before_it_is_damaged(player: Player) -> None:
    assert player.play("stray name in journal", {"a byte more": FILE_DAMAGES["a byte more"]}) == {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(reason=ELSEWHERE[name], strict=False)] if name in ELSEWHERE else [])
        for name in list(KINDS)[:: of_tier(1, 8)]
    ],
)
def test_damage(player: Player, name: str) -> None:
    damages = _chosen(name)
    bad = player.play(name, damages)
    told = "".join(f"\n  {damage}: {'; '.join(found)}" for damage, found in bad.items())
    assert not bad, f"{name}: {len(bad)} of {len(damages)} rows are bad{told}"
