"""Disk space that is set aside for one moment: a stop on a full disk."""

import os

import structlog

from ingestor.layout import FILE_MODE, Layout

_SIZE = 16 << 20

log = structlog.get_logger()


def fill_ballast(layout: Layout) -> None:
    """Set it aside. Without room for it the recording still starts. Raises OSError where there can be no file."""
    fd = os.open(layout.ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        os.posix_fallocate(fd, 0, _SIZE)
    except OSError as error:
        os.ftruncate(fd, 0)  # it may have taken what room there was
        log.warning("ballast.refused", error=error.strerror)
    finally:
        os.close(fd)


def release_ballast(layout: Layout) -> None:
    """Give its room back."""
    layout.ballast.unlink(missing_ok=True)
