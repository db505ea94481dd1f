"""A process that refuses what it never uses works on columns as before, and holds no memory that it does not need."""

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ingestor.system import is_readable

WORK = """
import sys
from ingestor.system import CLOUDS, UNUSED, refuse
refuse(UNUSED)
refuse(CLOUDS)
import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq, structlog
column = pa.array([3, 1, 2])
print(pc.sort_indices(column).to_pylist(), pc.add(column, 1).to_pylist())
print(*sorted({"numpy", "pandas", "rich"} & set(sys.modules)))
for name in ("numpy", "pandas", "rich.console", "pyarrow._s3fs"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_columns_without_what_is_not_used() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "[1, 2, 0] [4, 2, 3]",
        "",
        "this process does without numpy",
        "this process does without pandas",
        "this process does without rich",
        "this process does without pyarrow._s3fs",
    ]


FREED = """
import re
from ingestor import system
system.refuse(system.UNUSED)
system.use_system_allocator()
import pyarrow as pa
def own_kb():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"^Private_Dirty: +(\\d+)", file.read(), re.M)[1])
memory, before = system.FreeMemory(), own_kb()
kept = []
for _ in range(2):  # the first time, glibc maps them by itself
    held = [pa.repeat(1, 500_000) for _ in range(16)]  # 64 MB in pieces of 4
    full = own_kb()
    kept.append(pa.repeat(1, 8000))
    del held
print(full - before > 50_000, own_kb() - before < 8000)
held = [pa.repeat(1, 8000) for _ in range(1000)]  # 64 MB in pieces that the heap keeps when they are freed
kept = held[-1]
full = own_kb()
del held
freed = own_kb()
memory.tick(0.0)
print(pa.default_memory_pool().backend_name, full - before > 50_000, freed - before > 50_000, own_kb() - before < 8000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and the C library's malloc_trim are Linux's")
def test_what_is_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "system", "True", "True", "True"]


HEAPS = """
import ctypes, sys, threading
from ingestor.cli.main import main
try:
    main(["run", "--help"])
except SystemExit:
    pass
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
held, meet = [], threading.Barrier(9)
def hold():
    meet.wait()  # all at once: a thread that has ended leaves its heap to the next
    held.append(bytes(5000))
    meet.wait()
for _ in range(8):
    threading.Thread(target=hold).start()
meet.wait()
meet.wait()
told = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, told)
library.fclose(told)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps per thread are glibc's")
@pytest.mark.parametrize(("outside", "count"), [(None, 2), ("5", 5)])
def test_a_recorders_threads_share_two_heaps(tmp_path: Path, outside: str | None, count: int) -> None:
    """Or as many as the environment says. The limit is there before the command is imported, and starts a thread."""
    told = tmp_path / "heaps.xml"
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    environment |= {} if outside is None else {"MALLOC_ARENA_MAX": outside}
    subprocess.run([sys.executable, "-c", HEAPS, str(told)], check=True, env=environment)
    assert told.read_text().count("<heap nr=") == count


COMMAND = """
import sys
from ingestor.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
import pyarrow.fs
print("pyarrow._s3fs" in sys.modules)
"""


@pytest.mark.parametrize(("line", "has_clouds"), [("run --help", False), ("head --root run --help", True)])
def test_a_recorder_alone_does_without_clouds(line: str, has_clouds: bool) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, *line.split()], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(has_clouds)


STARTED = """
import sys
from ingestor.cli.main import main
try:
    main(["run", "--help"])
except SystemExit:
    pass
import ingestor.daemon
print(*sorted({"asyncio.events", "html.entities", "pkgutil", "structlog", "pyarrow.compute"} & set(sys.modules)))
"""


def test_a_recorder_imports_what_is_rarely_called_when_it_is_called() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "pyarrow.compute structlog"


POSTPONED = """
import sys
from ingestor.system import RARE, postpone
postpone(RARE)
postpone(RARE)
assert not any("__file__" in vars(sys.modules[name]) for name in RARE)
"""
AT_ONCE = """
import pydoc
from multiprocessing.pool import ThreadPool
with ThreadPool(8) as pool:
    assert len(set(pool.map(lambda _: pydoc.getdoc, range(64), chunksize=1))) == 1
"""


@pytest.mark.parametrize(
    "use",
    [
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "from asyncio import sleep, run; run(sleep(0))",
        "import asyncio.events; asyncio.events.new_event_loop().close()",
        "from asyncio.queues import Queue; Queue()",
        "from asyncio import *; run(sleep(0))",
        "import asyncio as one, asyncio as two; one.Queue; import asyncio; assert two.Queue is asyncio.Queue",
        "import html, http.server; assert html.escape('<') == '&lt;' and html.unescape('&lt;') == '<'",
        "from html.parser import HTMLParser; HTMLParser().feed('<a>')",
        "import html; html.escape; assert html.escape is vars(html)['escape']",
        "import pydoc; assert pydoc.getdoc(print).startswith('Prints')",
        "import html\ntry: html.none\nexcept AttributeError: pass\nelse: raise AssertionError",
        AT_ONCE,
    ],
)
def test_what_is_imported_later_is_used_as_ever(use: str) -> None:
    program = f"{POSTPONED}\n{use}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_any_descriptor_is_waited_for() -> None:
    """One above 1023, which `select` refuses, and `/dev/null`, which `epoll` refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    try:
        high = fcntl.fcntl(ours, fcntl.F_DUPFD, min(1500, hard - 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with (
        os.fdopen(ours),
        os.fdopen(high),
        os.fdopen(theirs, "wb", buffering=0) as writer,
        Path(os.devnull).open() as nothing,
    ):
        assert not is_readable(high, 0)
        writer.write(b"x")
        assert is_readable(high, None)
        assert is_readable(nothing.fileno(), 0)
