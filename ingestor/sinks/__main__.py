"""The process that carries the journal to other systems: `python -m ingestor.sinks`, started by the recorder alone."""

import json
import os
import signal
import sys
import threading
import time
from typing import BinaryIO

import structlog

from ingestor.errors import DamagedFile
from ingestor.layout import Layout, open_own, try_lock
from ingestor.logs import configure_logs
from ingestor.sinks.destinations import make_external_workers
from ingestor.sinks.process import SinkSetup
from ingestor.system import UNUSED, FreeMemory, is_readable, refuse, use_system_allocator

_NICE = 10
_LOOK_S = 0.2
_PIECE = 4096

log = structlog.get_logger()


def main(pipe: BinaryIO) -> int:
    """Carry until the pipe ends, then to the end of the journal within `stop_timeout`. The exit code: 0 in order."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the recorder, which ends the pipe when it is time
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o027)
    os.nice(_NICE)
    refuse(UNUSED)
    use_system_allocator()
    told = pipe.readline()
    if not told:
        return 0
    handover = SinkSetup.model_validate(json.loads(told))  # as YAML is: the settings' parsers take Python's values
    configure_logs(handover.logging.level, handover.logging.format, list(handover.secrets.values()))
    layout = Layout(handover.root)
    if not _lock(layout, pipe):
        return 0
    stop = threading.Event()
    try:
        workers = make_external_workers(handover.sinks, layout, handover.feed, handover.secrets, stop)
    except (OSError, DamagedFile) as error:  # by another name the destinations would take all of it for new
        log.error("sinks.refused", error=str(error), hint="put the root's name back, or remove the file for a new one")
        return 1
    threads = [threading.Thread(target=worker.run, name=worker.name, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    memory = FreeMemory()
    while all(thread.is_alive() for thread in threads) and not _has_ended(pipe, _LOOK_S):
        memory.tick(time.monotonic())
    stop.set()
    deadline_s = time.monotonic() + handover.stop_timeout
    for thread in threads:
        thread.join(max(deadline_s - time.monotonic(), 0.0))
    return 0


def _lock(layout: Layout, pipe: BinaryIO) -> bool:
    """Be the one such process of this root, once that of a recorder that was killed has ended; False where our own
    recorder ended first.
    """
    fd = open_own(layout.sinks_lock, os.O_RDWR)
    waiting = False
    while True:
        if try_lock(fd):
            return True
        if not waiting:
            log.info("sinks.waiting", reason="those of an earlier recorder are still carrying")
        waiting = True
        if _has_ended(pipe, _LOOK_S):
            log.info("sinks.left", reason="the recorder stopped first: the next start carries on")
            return False


def _has_ended(pipe: BinaryIO, patience_s: float) -> bool:
    return is_readable(pipe.fileno(), patience_s) and not os.read(pipe.fileno(), _PIECE)


if __name__ == "__main__":
    code = main(sys.stdin.buffer)
    sys.stderr.flush()
    os._exit(code)  # a thread that still waits for its destination must not keep the process
