"""Runs rows of the damage table: a process that has imported everything forks one child per step, and says on stdout
what became of each. A child that hangs is killed and told as such.

A request is a line of JSON: a list of rows, each `{"root", "step", "url", "key", "sinks"}`. The answer is a line: a
list of `{"code", "hung", "recorded", "told"}`.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ingestor
from ingestor.cli.main import main
from ingestor.daemon import record  # noqa: F401  imported before the first fork, as all of these
from ingestor.dataset.arguments import EVER
from ingestor.dataset.export import export_trades
from ingestor.dataset.verify import Verification
from ingestor.errors import DamagedFile, IngestorError
from ingestor.layout import Layout, list_segments

AT_ONCE = 6
_PATIENCE = 10 if "CHAOS_ROUNDS" in os.environ else 1
"""The long form runs beside whatever else the machine does, and what hangs does so for ever."""
RECORD_S = 20.0 * _PATIENCE
"""How long a recorder has until its first rows are journaled."""
END_S = 15.0 * _PATIENCE
"""How long it then has to stop, and how long a reading may take."""
_POLL_S = 0.02
_BEGUN_BYTES = 4096
_FILE_RIGHTS = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPBSET_DROP = 24


def respect_modes() -> None:
    """From now on a file without permission can't be opened, not even by root."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for right in _FILE_RIGHTS:
        libc.prctl(_CAPBSET_DROP, right, 0, 0, 0)
        for at in (0, 1, 2):
            sets[at] &= ~(1 << right)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def run_recorder(row: dict[str, Any]) -> None:
    root = Path(row["root"])
    settings = {
        "feed": {"url": row["url"]},
        "tickers": ["AAPL", "MSFT", "BINANCE:BTCUSDT"],
        "storage": {"root": str(root), "formats": ["parquet", "csv"], "rotate": {"age": "1s"}, "min_free": "0B"},
        "health": {"listen": None},
        "logging": {"format": "json"},
        "stop_timeout": "3s",
        **({"sinks": {"sqlite": {"path": str(root.parent / "sink.db")}}} if row["sinks"] else {}),
    }
    config = root.with_suffix(".yaml")
    config.write_text(json.dumps(settings))  # JSON is YAML
    os.environ["FINNHUB_API_KEY"] = row["key"]
    main(["run", "--config", str(config)])


def _tell(fault: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(fault) + "\n")
    sys.stderr.flush()


def read_all(row: dict[str, Any]) -> None:
    """Each way to read a recording; on stderr a line of JSON for each: its name and what it raised."""
    root = Path(row["root"])
    exported = root.with_suffix(".export")
    ways: dict[str, Callable[[], object]] = {
        "read_trades": lambda: ingestor.read_trades(root, engine="arrow"),
        "read_trades (span)": lambda: ingestor.read_trades(root, start="2026-11-20 12:00:01", engine="arrow"),
        "describe": lambda: ingestor.describe(root, engine="arrow"),
        "bars": lambda: ingestor.read_bars(root, "1m", engine="arrow"),
        "coverage": lambda: ingestor.read_coverage(root, engine="arrow"),
        "rejects": lambda: ingestor.read_rejects(root, engine="arrow"),
        "export": lambda: list(export_trades(root, exported, "csv", EVER)),
        "follow": lambda: next(iter(ingestor.follow(root, from_="start")), None),
    }
    for name, read in ways.items():
        fault: dict[str, Any] = {"way": name}
        try:
            read()
        except IngestorError as error:
            fault |= {"error": str(error)}
        except Exception:  # noqa: BLE001  told, and judged by the test
            fault |= {"traceback": traceback.format_exc()}
        _tell(fault)
    verify(row)


def verify(row: dict[str, Any]) -> None:
    """The differences, in the same way."""
    fault: dict[str, Any] = {"way": "verify"}
    try:
        verification = Verification(Layout(Path(row["root"])))
        fault["differences"] = [str(one) for step in verification.run() for one in step]
    except IngestorError as error:
        fault |= {"error": str(error)}
    except Exception:  # noqa: BLE001  told, and judged by the test
        fault |= {"traceback": traceback.format_exc()}
    _tell(fault)


STEPS: dict[str, Callable[[dict[str, Any]], None]] = {"run": run_recorder, "read": read_all, "verify": verify}


class Child:
    """One row's step, in a process of its own."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._row = row
        self._log = Path(row["root"]).with_suffix(f".{row['step']}.log")
        self._newest = _newest_segment(Path(row["root"]))
        self._deadline_s = time.monotonic() + (RECORD_S if row["step"] == "run" else END_S)
        self._stopping = False
        self.result: dict[str, Any] = {"code": None, "hung": False, "recorded": False, "told": ""}
        self.pid = os.fork()
        if self.pid == 0:
            self._work()

    def _work(self) -> None:
        code = 70
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 2)
            os.dup2(log, 1)
            respect_modes()
            STEPS[self._row["step"]](self._row)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 71
        except BaseException:  # noqa: BLE001  the log has it
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.result["code"] = os.waitstatus_to_exitcode(status)
            self.result["told"] = self._log.read_text(errors="replace")
            return True
        if self._row["step"] == "run" and not self._stopping:
            self.result["recorded"] = _newest_segment(Path(self._row["root"])) > self._newest
            if self.result["recorded"] or time.monotonic() > self._deadline_s:
                os.kill(self.pid, signal.SIGTERM)
                self._stopping = True
                self._deadline_s = time.monotonic() + END_S
        elif time.monotonic() > self._deadline_s:
            self.result["hung"] = True
            os.kill(self.pid, signal.SIGKILL)
        return False


def _newest_segment(root: Path) -> int:
    """The number of the newest segment that holds rows; 0 where there is none."""
    found = 0
    with contextlib.suppress(OSError, DamagedFile):
        for file in list_segments(Layout(root)):
            with contextlib.suppress(OSError):
                if _BEGUN_BYTES < file.path.stat().st_size < 1 << 30:
                    found = max(found, file.id.number)
    return found


def serve() -> None:
    for line in sys.stdin:
        waiting = list(enumerate(json.loads(line)))
        results: list[Any] = [None] * len(waiting)
        working: dict[int, Child] = {}
        while waiting or working:
            while waiting and len(working) < AT_ONCE:
                at, row = waiting.pop(0)
                working[at] = Child(row)
            for at in [at for at, child in working.items() if child.ended()]:
                results[at] = working.pop(at).result
            time.sleep(_POLL_S)
        sys.stdout.write(json.dumps(results) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
