"""Journals rows and carries them to Parquet and CSV, without a venue: the process whose system calls are made to fail.

    python drive_journal.py ROOT BLOCKS

Ends with 0 when every row is synced; what its sinks could not finish is left to the next start.
"""

import sys
import threading
from pathlib import Path

from journals import Clock, Life, make_root

from ingestor.journal.writer import Rotation


def main(root: Path, blocks: int) -> None:
    layout = make_root(root)
    life = Life(layout, rotation=Rotation(age_s=1, size=4000), clock=Clock())
    journal, ended = life.writer.journal, threading.Event()
    runner, _ = life.make_runner(ended)
    files = threading.Thread(target=runner.run)
    files.start()
    for _ in range(blocks):
        life.writer.append()
        journal.sync()
        journal.rotate_if_due()
        while journal.failed:
            journal.recover()
    journal.close()
    ended.set()
    files.join()
    life.ledger.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
