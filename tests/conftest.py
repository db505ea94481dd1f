"""What holds for every test; and one line a scenario at the end of the run: what it went through, and what that
cost.
"""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog
from journals import recording_descriptors, writing_descriptors
from requirements import find_missing

if TYPE_CHECKING:
    from harness import Tally

_TALLIES = pytest.StashKey[list["Tally"]]()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: no collection looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the quick tier: no test marked `long`, short rounds")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLIES] = []
    hypothesis.settings.register_profile("full", deadline=None)  # a machine that is busy is no failure
    hypothesis.settings.load_profile("full")
    if config.getoption("--quick"):
        os.environ["QUICK_TIER"] = "1"  # before a test module asks how much it is to do
        hypothesis.settings.register_profile("quick", max_examples=15, deadline=None)
        hypothesis.settings.load_profile("quick")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's shell leaves it to what it starts with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)  # our children inherit it, and must heed Ctrl-C


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What this machine can't do is found out before a fixture starts anything."""
    needs = [need for marker in item.iter_markers("needs") for need in marker.args]
    missing = next((reason for need in needs if (reason := find_missing(need))), None)
    if missing is None:
        return
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Whatever the tests have started has ended with them."""
    yield
    left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in _children()}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not left, f"left behind: {left}"


def _children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


@pytest.fixture(scope="session")
def _threads_of_the_run() -> set[threading.Thread]:
    """Those that are there before any test: a worker of several has one beside the main thread."""
    return set(threading.enumerate())


@pytest.fixture(autouse=True)
def _crashes_leave_no_descriptors(_threads_of_the_run: set[threading.Thread]) -> Iterator[None]:
    """A crash is often played by dropping a journal, a follower or a ledger as it stands. The kernel would close their
    descriptors: so do we, or some hundred tests would take all that a process may have. Not while another thread runs,
    which may close its own at this very moment; one that waits for signals, or for work in a pool, has none, and one
    that a library made is listed for ever as a dummy once it has called Python.
    """
    before = recording_descriptors()
    yield
    running = set(threading.enumerate()) - _threads_of_the_run
    others = [one for one in running if not one.name.startswith(("signals", "ThreadPoolExecutor", "asyncio", "Dummy"))]
    left = set() if others else recording_descriptors() - before
    if left and left - {descriptor for descriptor, _ in writing_descriptors()}:
        gc.collect()  # a reader in a cycle closes its own, which would be another's by then
        left &= recording_descriptors()
    for descriptor in left:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def _logs_are_as_before() -> Iterator[None]:
    """A command that runs in this process sends its log to its own stream, and knows its own secrets."""
    root = logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    yield
    if root.handlers != handlers:
        root.handlers[:], root.level = handlers, level
        sys.excepthook, threading.excepthook = hooks
        structlog.reset_defaults()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> "Iterator[Tally]":
    """The account of this scenario, shown at the end; a scenario that never began has none."""
    from harness import Tally  # stands beside the scenarios

    account = Tally(request.node.name.removeprefix("test_"))
    yield account
    if account.rounds:
        request.config.stash[_TALLIES].append(account)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tallies = config.stash[_TALLIES]
    if tallies:
        terminalreporter.section("scenarios")
    width = max((len(tally.scenario) for tally in tallies), default=0)
    for tally in tallies:
        terminalreporter.write_line(f"{tally.scenario:<{width}}  {tally}")
