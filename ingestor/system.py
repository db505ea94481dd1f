"""What operating systems have under different names or not at all. Recording needs Linux; reading needs none of it."""

import os
from pathlib import Path

from ingestor.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

FD_PATHS = Path("/proc/self/fd").exists()
"""Whether `/dev/fd/N` opens the file of a descriptor anew, with an offset of its own. Elsewhere it is a duplicate."""
READ = os.O_RDONLY
"""Flags to open a file for reading: not as text, not in children, and without waiting for the writer of a fifo."""
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):
    READ |= getattr(os, _name, 0)

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def require_recorder() -> None:
    """Raises ConfigError where nothing can be recorded: without locks one root could have two recorders."""
    if fcntl is None:
        raise ConfigError("recording needs Linux: on Windows, use WSL2 or the container; reading works here")


def flock(fd: int, *, shared: bool, wait: bool) -> None:
    """Lock this file; nothing where there are no locks. Raises BlockingIOError where another has it, OSError."""
    if fcntl is not None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def pread(fd: int, size: int, offset: int) -> bytes:
    """Bytes of this file at this offset. Where there is no pread the descriptor's own offset moves: one thread a
    descriptor.
    """
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def sync_data(fd: int) -> None:
    """Make a file's bytes survive a power cut. Raises OSError.

    macOS hands them to a disk that may keep them in its own memory, unless it is asked for more.
    """
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_whole(fd: int) -> None:
    """Make a file or directory itself survive one, too. Raises OSError."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fsync(fd)


def allow_open_files(count: int) -> None:
    """Let this process open so many files, or as many as it may. Windows has no such limit for us."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
