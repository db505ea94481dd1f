"""Rejects and rows on a disk that may refuse: they wait for it, and the session is told what it waits for."""

import structlog

from ingestor.capture.buffer import Buffer
from ingestor.capture.observed import Observed
from ingestor.capture.refused import Refused
from ingestor.capture.rejects import Rejects
from ingestor.errors import RowsUnsaved
from ingestor.journal.writer import Journal

_RETRY_S = 1.0

log = structlog.get_logger()


class Keeper:
    """For the recorder's thread. A Buffer that is closed says that the process is to end. Nothing raises OSError."""

    def __init__(self, journal: Journal, rejects: Rejects, buffer: Buffer, observed: Observed) -> None:
        self._journal = journal
        self._rejects = rejects
        self._buffer = buffer
        self._observed = observed

    def keep(self, refused: list[Refused]) -> bool:
        """Whether these are done with: written, or given up at a stop. Waits a second where the disk refuses."""
        try:
            self._rejects.write(refused)
        except OSError as error:
            log.error("rejects.failed", error=error.strerror)
            self._observed.saw_disk(failing=True)
            return self._buffer.wait_closed(_RETRY_S)
        self._observed.saw_disk(failing=False)
        return True

    def sync(self) -> None:
        """Make rejects and rows survive a power cut."""
        try:
            self._rejects.sync()
        except OSError as error:
            log.error("rejects.failed", error=error.strerror)
        self._journal.sync()

    def recover(self) -> None:
        """The journal failed: wait a second, then try to go on. Rows stay in memory, and the Buffer fills.

        Raises RowsUnsaved where the process must end and even the ballast's room is not enough.
        """
        self._observed.saw_disk(failing=True)
        stopping = self._buffer.wait_closed(_RETRY_S)
        if self._journal.recover(last_chance=stopping):
            self._observed.saw_disk(failing=False)
        elif stopping and (error := self._journal.failed):
            rows, frames = self._journal.unsynced.rows, self._buffer.frames_waiting
            raise RowsUnsaved(f"{rows} trades and {frames} frames could not be saved: {error.strerror}")

    def close(self) -> None:
        """Raises RowsUnsaved where no disk takes the rest."""
        try:
            self._rejects.close()
        except OSError as error:  # the journal counts them, and its rows come first
            log.error("rejects.failed", error=error.strerror)
        self._journal.close()
