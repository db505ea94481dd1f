"""Disk space that is set aside for one moment: a stop on a full disk."""

import contextlib
import os

import structlog

from ingestor.layout import Layout, open_own

_SIZE = 16 << 20

log = structlog.get_logger()


def fill_ballast(layout: Layout) -> None:
    """Set it aside. Without it the recording still starts, and says so."""
    try:
        fd = open_own(layout.ballast, os.O_WRONLY)
    except OSError as error:
        log.warning("ballast.refused", file=str(layout.ballast), error=error.strerror)
        return
    try:
        os.ftruncate(fd, min(os.fstat(fd).st_size, _SIZE))
        os.posix_fallocate(fd, 0, _SIZE)
    except OSError as error:
        log.warning("ballast.refused", file=str(layout.ballast), error=error.strerror)
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)  # it may have taken what room there was
    finally:
        os.close(fd)


def release_ballast(layout: Layout) -> None:
    """Give its room back, where there is any."""
    with contextlib.suppress(OSError):
        layout.ballast.unlink(missing_ok=True)
