"""Fills gaps while the recorder runs: a process at the lowest priority finds them and asks the history; the recorder
journals what it brings, when no frame waits.

One root has one writer. So the process (`python -m ingestor.backfill`) writes nothing: it says what it would write on
its standard output, and waits for the answer that it is in the journal, and synced. Whatever it does, and however it
ends, the recording goes on without it; a fill that was cut off is completed by the next round.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pyarrow as pa
import structlog
from pydantic import BaseModel, ConfigDict, Field

from ingestor.capture.recorder import Fills
from ingestor.config import Settings
from ingestor.config.key import load_secret
from ingestor.config.sections import ConnectionSettings, HistorySource, LoggingSettings
from ingestor.errors import ConfigError
from ingestor.layout import Layout
from ingestor.ledger import Ledger
from ingestor.operations.recorder_status import BackfillState
from ingestor.sinks.process import child_environment

ALPACA = {"APCA-API-KEY-ID": "ALPACA_API_KEY_ID", "APCA-API-SECRET-KEY": "ALPACA_API_SECRET_KEY"}
"""Its headers, and where the environment or `.env` has what belongs into them."""
ROWS_AT_ONCE = 1 << 16
"""So many are journaled between two blocks of what is heard."""
OK = b"ok\n"

log = structlog.get_logger()


class BackfillSetup(BaseModel):
    """What the process is told: one line of JSON."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    root: Path
    source: HistorySource
    url: str | None
    key: str = Field(repr=False)
    secrets: dict[str, str] = Field(repr=False)
    """Headers."""
    min_agreement: float
    settle: float
    connection: ConnectionSettings
    logging: LoggingSettings


class BackfillProcess:
    """`run` is a thread's work: a round now and then, until `end`."""

    def __init__(self, setup: BackfillSetup, every_s: float, ledger: Ledger, fills: Fills) -> None:
        self._setup = setup
        self._every_s = every_s
        self._ledger = ledger
        self._fills = fills
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._filled = 0
        self._unfilled = 0
        self._round: float | None = None
        self._error: str | None = None

    @property
    def state(self) -> BackfillState:
        """What it has done, and does."""
        return BackfillState(
            source=self._setup.source,
            running=self._process is not None,
            filled=self._filled,
            unfilled=self._unfilled,
            trades=self._fills.rows,
            last_round_at=self._round,
            error=self._error,
        )

    def run(self) -> None:
        """Never raises: nothing that happens here is worth a recording."""
        while not self._ended.wait(self._every_s):
            try:
                self._error = self._live_once()
            except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
                self._error = f"{type(error).__name__}: {error}"
            if self._error and not self._ended.is_set():
                log.error("backfill.failed", error=self._error, hint="the recording goes on; it is tried again")
            self._round = time.time()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._ended.set()
        self._fills.close()
        process = self._process
        if process is not None:
            process.kill()

    def _live_once(self) -> str | None:
        """One round. What went wrong, in a sentence."""
        command = [sys.executable, "-m", "ingestor.backfill"]
        process = subprocess.Popen(  # noqa: S603  our own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        )
        self._process = process
        try:
            if self._ended.is_set() or process.stdin is None or process.stdout is None:
                return None
            with process.stdin, process.stdout:
                process.stdin.write(self._setup.model_dump_json().encode() + b"\n")
                process.stdin.flush()
                self._unfilled = 0
                while line := process.stdout.readline():
                    if not self._take(json.loads(line), process.stdout):
                        return None
                    process.stdin.write(OK)
                    process.stdin.flush()
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            self._process = None
        return f"the process ended with code {code}" if code and not self._ended.is_set() else None

    def _take(self, told: dict[str, object], pipe: IO[bytes]) -> bool:
        """Do what it asks for; False where the recorder has ended before."""
        if isinstance(size := told.get("rows"), int):
            rows = pa.ipc.open_stream(pipe.read(size)).read_all()
            pieces = [rows.slice(at, ROWS_AT_ONCE) for at in range(0, rows.num_rows, ROWS_AT_ONCE)]
            return all(self._fills.offer(piece) for piece in pieces)
        fact, fields = told["fact"], told["fields"]
        if not isinstance(fields, dict) or fact not in {"gap.filled", "gap.unfilled"}:
            raise ValueError(f"no fact of a fill: {fact!r}")
        self._ledger.record(str(fact), **fields)
        if fact == "gap.filled":
            self._filled += 1
            log.info("gap.filled", **{name: fields[name] for name in ("symbol", "source", "rows")})
        else:
            self._unfilled += 1
            log.warning("gap.unfilled", **{name: fields[name] for name in ("symbol", "source", "why")})
        return True


def load_source_secrets(source: str, config_dir: Path) -> dict[str, str]:
    """The headers that a source wants beside a key. Raises ConfigError where one is not there."""
    if source != "alpaca":
        return {}
    found = {header: load_secret(variable, config_dir) for header, variable in ALPACA.items()}
    secrets = {header: secret for header, secret in found.items() if secret}
    if len(secrets) < len(found):
        raise ConfigError(f"Alpaca's history needs a key of its own: {' and '.join(ALPACA.values())}")
    return secrets


def make_backfill_process(
    settings: Settings, layout: Layout, key: str, config_dir: Path, ledger: Ledger, fills: Fills
) -> BackfillProcess | None:
    """The process that `backfill` asks for; not started yet. Raises ConfigError where a secret is missing."""
    asked = settings.backfill
    if asked is None or settings.history is None:
        return None
    setup = BackfillSetup.model_validate(
        {
            "root": layout.root,
            "source": settings.history,
            "url": asked.url,
            "key": key if settings.history == "finnhub" else "",
            "secrets": load_source_secrets(settings.history, config_dir),
            "min_agreement": asked.min_agreement,
            "settle": asked.settle,
            "connection": settings.connection,
            "logging": settings.logging,
        }
    )
    return BackfillProcess(setup, asked.every, ledger, fills)
