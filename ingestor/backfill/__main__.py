"""The process that fills gaps for a running recorder: `python -m ingestor.backfill`, started by the recorder alone.

It asks and compares at the lowest priority, and writes nothing: what it would write goes to its standard output, and
the recorder answers once that is in the journal, and synced.
"""

import json
import os
import signal
import sys
from typing import Any, BinaryIO

import pyarrow as pa
import structlog

from ingestor.backfill import fill, sources
from ingestor.errors import IngestorError
from ingestor.layout import Layout
from ingestor.ledger import now_us
from ingestor.logs import configure_logs
from ingestor.operations.backfill_process import OK, BackfillSetup

_LOWEST = 19

log = structlog.get_logger()


class RecorderGone(Exception):
    """The recorder has ended: there is nobody to fill for."""


class Pipe:
    """What a fill writes goes to the recorder."""

    def __init__(self, say: BinaryIO, hear: BinaryIO) -> None:
        self._say = say
        self._hear = hear

    def record(self, fact: str, **fields: Any) -> None:
        """Have the recorder write this fact. Raises RecorderGone."""
        self._send({"fact": fact, "fields": fields}, b"")

    def write(self, rows: pa.Table) -> None:
        """Have it journal these rows. Raises RecorderGone."""
        held = pa.BufferOutputStream()
        with pa.ipc.new_stream(held, rows.schema) as stream:
            stream.write_table(rows)
        body = held.getvalue()
        self._send({"rows": body.size}, body)

    def close(self) -> None:
        """Nothing: each thing that was sent is done with."""

    def _send(self, told: dict[str, Any], body: "bytes | pa.Buffer") -> None:
        try:
            self._say.write(json.dumps(told).encode() + b"\n")
            self._say.write(body)
            self._say.flush()
        except BrokenPipeError:
            raise RecorderGone from None
        if self._hear.readline() != OK:
            raise RecorderGone


def main(hear: BinaryIO, say: BinaryIO) -> int:
    """One round. The exit code: 0 in order, also where the recorder has ended before."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the recorder, which ends this process
        signal.signal(number, signal.SIG_IGN)
    os.nice(_LOWEST)
    pa.set_cpu_count(1)
    told = hear.readline()
    if not told:
        return 0
    setup = BackfillSetup.model_validate(json.loads(told))  # as YAML is: the settings' parsers take Python's values
    configure_logs(setup.logging.level, setup.logging.format, [setup.key, *setup.secrets.values()])
    try:
        source = sources.make_source(setup.source, setup.url, setup.key, setup.secrets, setup.connection)
        work = fill.Backfill(Layout(setup.root), source, min_agreement=setup.min_agreement, target=Pipe(say, hear))
        for _ in work.fill(work.find_due(now_us(), round(setup.settle * 1e6))):
            pass
    except RecorderGone:
        return 0
    except (IngestorError, OSError) as error:
        log.error("backfill.refused", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.stdin.buffer, sys.stdout.buffer)
    sys.stderr.flush()
    os._exit(code)
