"""Ledgers over several days, as a recorder writes them, and as a version of format 1 has left them."""

from pathlib import Path
from typing import Any

from journals import make_root

from ingestor.facts import Fact, encode_line
from ingestor.history import read_history
from ingestor.layout import Layout
from ingestor.ledger import DAY_US, Ledger, day_of, list_ledgers, read_facts
from ingestor.schema import FORMAT_VERSION

HOUR_US = DAY_US // 24
FIRST = 20_000 * DAY_US
LAST_DAY = day_of(FIRST + 9 * DAY_US)
SYMBOLS = ("A", "B", "C")


class Story:
    """A ledger over several days, written as a recorder does it: facts at hours since the first midnight."""

    def __init__(self, root: Path) -> None:
        self.layout = make_root(root)
        self.hour = 0.0
        self.run = 0
        self.connection = 0
        self.gap = 0
        self.ledger: Ledger | None = None

    def at(self, hour: float | None = None) -> int:
        return FIRST + round((self.hour if hour is None else hour) * HOUR_US)

    def hour_of(self, at_us: int) -> float:
        return round((at_us - FIRST) / HOUR_US, 6)

    def tell(self, fact: str, **fields: Any) -> None:
        assert self.ledger is not None
        self.ledger.record(fact, at=self.at(), **fields)

    def start(self, tickers: tuple[str, ...] = SYMBOLS) -> None:
        history = read_history(self.layout)
        self.run, self.connection = history.run + 1, 0
        gaps = list(history.open_gaps)
        if self.run > 1 and not history.stopped and not any(gap["symbol"] is None for gap in gaps):
            gaps.append({"gap": f"r{self.run}-0", "cause": "crash", "since": history.ended, "symbol": None})
        self.tickers = tickers
        self.ledger = Ledger(self.layout, self.run, day_of(self.at()))
        self.tell(
            "run.started", format=FORMAT_VERSION, run=self.run, feed="finnhub", tickers=list(tickers), first_segment=1,
            formats=["parquet"], open_gaps=gaps, asked=list(history.asked), ended=history.ended, closed=history.closed,
            **({} if history.right is None else {"right": history.right}),
        )  # fmt: skip

    def connect(self) -> None:
        self.connection += 1
        symbols = list(self.tickers) if self.connection == 1 else None
        self.tell("symbols.requested", connection=self.connection, symbols=symbols)
        for gap in [gap for gap in read_history(self.layout).open_gaps if gap["symbol"] is None]:
            self.tell("gap.closed", **{**gap, "until": self.at()})

    def prove(self, *symbols: str) -> None:
        self.tell("symbols.proven", connection=self.connection, base=self.at(), symbols=dict.fromkeys(symbols, 0))

    def lose(self, cause: str = "connection", late_h: float = 0.0) -> None:
        """The connection is lost; the gap began `late_h` hours before that was seen."""
        self.tell("connection.lost", connection=self.connection)
        self.gap += 1
        since = self.at(self.hour - late_h)
        self.tell("gap.opened", gap=f"r{self.run}-{self.gap}", cause=cause, since=since, symbol=None)

    def stop(self) -> None:
        self.lose("shutdown")
        self.tell("run.stopped", error=None)
        self.kill()

    def kill(self) -> None:
        assert self.ledger is not None
        self.ledger.close()


def write_story(root: Path) -> Story:
    """Four days: a gap over midnight that was seen after it, a mute symbol, a stop of a day and a half, a crash."""
    story = Story(root)
    story.hour = 10.0
    story.start()
    story.connect()
    story.prove("A")
    story.hour = 12.0
    story.prove("B")
    story.hour = 24.2
    story.lose("stall", late_h=0.5)
    story.hour = 24.5
    story.connect()
    story.prove("A", "B", "C")
    story.tell("gap.opened", gap="m", cause="symbol_mute", since=story.at(24.6), symbol="B")
    story.hour = 30.0
    story.stop()
    story.hour = 66.0
    story.start(("A", "B"))
    story.hour = 66.1
    story.connect()
    story.prove("A")
    story.hour = 70.0
    story.kill()
    story.hour = 75.0
    story.start(("A", "B"))
    story.hour = 75.1
    story.connect()
    story.prove("A", "B")
    story.tell("gap.closed", gap="m", cause="symbol_mute", since=story.at(24.6), until=story.at(), symbol="B")
    story.hour = 97.0
    story.tell("disk.low", free=1, floor=2)
    return story


def as_format_1(layout: Layout) -> None:
    """The same facts as a version of format 1 has left them: one file per run, without checksums."""
    by_run: dict[int, list[Fact]] = {}
    for path in list_ledgers(layout):
        run = int(path.name[:6])
        for fact in read_facts(path):
            if fact["fact"] == "day.started":
                continue
            old = {name: value for name, value in fact.items() if name not in {"asked", "ended", "closed"}}
            by_run.setdefault(run, []).append(old | ({"format": 1} if fact["fact"] == "run.started" else {}))
        path.unlink()
    layout.state.unlink(missing_ok=True)
    for run, facts in by_run.items():
        path = layout.coverage / f"{run:06d}-20241004T100000Z.jsonl"
        path.write_text("".join(encode_line(fact)[:-18].rstrip(",") + "}\n" for fact in facts))
