"""What operating systems have under different names or not at all, and what keeps a process small.

Recording needs Linux; reading needs none of it.
"""

import ctypes
import logging
import os
import selectors
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

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


def is_readable(fd: int, patience_s: float | None) -> bool:
    """Whether there is something to read, or the end of it, within this time (None: however long it takes).

    By `poll`: `select` refuses descriptors above 1023, and `epoll` what is no pipe, socket or terminal.
    """
    with getattr(selectors, "PollSelector", selectors.DefaultSelector)() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(patience_s))


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


# A process that stays small
#
# pyarrow imports numpy and cloudpickle when it is imported, and pandas when it makes its first array; structlog imports
# rich, tenacity tornado. Where they are installed, that is half of the CPU and memory of a command's start, and of a
# recorder that works on columns alone. Each of them does without, as on a machine that has none of them. So does
# `pyarrow.fs` without the stores of a cloud, where no root lies in one. And what they import of Python's own library,
# and hardly ever call, is imported when it is called.
#
# Of what a recorder frees, the C library and Arrow's own allocator would keep tens of megabytes for months. Arrow takes
# its memory from the C library, and what lies free there goes back to the system every few seconds: see
# docs/performance.md for the figures.

UNUSED = frozenset({"cloudpickle", "numpy", "pandas", "rich", "tornado"})
"""What a process that works on columns alone does without."""
CLOUDS = frozenset({"pyarrow._azurefs", "pyarrow._gcsfs", "pyarrow._hdfs", "pyarrow._s3fs"})
"""The file systems of pyarrow that are none of this machine."""
RARE = ("asyncio", "html", "pydoc")
"""What structlog, http.server and pyarrow import, and use in coroutines, pages of errors, and docstrings."""
_TRIM_S = 10.0
_MALLOPT = (
    (-3, 2 << 20, "MALLOC_MMAP_THRESHOLD_"),
    (-1, 8 << 20, "MALLOC_TRIM_THRESHOLD_"),
    (-8, 2, "MALLOC_ARENA_MAX"),
)
"""Parameter, value, and what sets it from outside. Columns that are sealed are mapped by themselves, and are gone when
they are freed; what blocks of frames need stays in the heaps. glibc moves the first up to 32 MB by itself, until the
heaps hold what a seal has needed, in holes: https://man7.org/linux/man-pages/man3/mallopt.3.html. And the threads
share two heaps, so that the holes of one are filled by all.
"""


class _Refusal:
    """Stands first among the finders of `sys.meta_path`."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        for name in self.names:
            if f"{fullname}.".startswith(f"{name}.") and name not in sys.modules:  # a loaded one may load its parts
                raise ModuleNotFoundError(f"this process does without {fullname}", name=fullname)
        return None


_REFUSAL = _Refusal()


def refuse(names: Collection[str]) -> None:
    """From now on this process can't import these modules, but for those that it has imported already: `UNUSED` to be
    refused before pyarrow is imported, `CLOUDS` before `pyarrow.fs` is.
    """
    _REFUSAL.names |= set(names)
    if _REFUSAL not in sys.meta_path:
        sys.meta_path.insert(0, _REFUSAL)


class _Postponed(ModuleType):
    """A stand-in for a module, which imports it when one of its attributes is looked up. Whoever has imported the
    stand-in by then goes on with it, so it keeps each attribute that was looked up.

    `importlib.util.LazyLoader` can't be used: a second `import` looks up `__spec__`, and that loads the module.
    """

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        value = vars(self)[name] = getattr(import_module(self.__name__), name)
        return value


def postpone(names: Iterable[str]) -> None:
    """Import these modules when something of them is first used, not before; to be called before they are imported."""
    # From Python 3.12 on, each log record would look up its asyncio task, which nothing here prints:
    # https://docs.python.org/3/howto/logging.html#optimization
    vars(logging)["logAsyncioTasks"] = False
    for name in names:
        sys.modules.setdefault(name, _Postponed(name))


def _find_in_c_library(name: str) -> Callable[..., int] | None:
    """A function of the C library, or None where it has none of this name: what we look for, only glibc has
    (https://man7.org/linux/man-pages/man3/malloc_trim.3.html).
    """
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except TypeError:  # Windows, where a library needs a name
        return None


def use_system_allocator() -> None:
    """Arrow takes its memory from the C library, unless the environment names another allocator, and the library's
    heaps are few. To be called before pyarrow is imported and before any thread is started: a heap that is there stays.
    Children inherit the allocator, not the limit of heaps.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if mallopt := _find_in_c_library("mallopt"):
        for parameter, value, outside in _MALLOPT:
            if outside not in os.environ:
                mallopt(parameter, value)


class FreeMemory:
    """Gives what lies free in the C library's heaps back to the system, every ten seconds."""

    def __init__(self) -> None:
        self._trim = _find_in_c_library("malloc_trim")
        self._due_s = 0.0

    def tick(self, now_s: float) -> None:
        """At most some tenths of a millisecond, since little gathers in ten seconds."""
        if self._trim is not None and now_s >= self._due_s:
            self._trim(0)
            self._due_s = now_s + _TRIM_S
