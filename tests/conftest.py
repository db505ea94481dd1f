"""What holds for every test; and one line a scenario at the end of the run: what it went through, and what that
cost.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from journals import recording_descriptors

if TYPE_CHECKING:
    from harness import Tally

_TALLIES = pytest.StashKey[list["Tally"]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLIES] = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's shell leaves it to what it starts with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)  # our children inherit it, and must heed Ctrl-C


@pytest.fixture(autouse=True)
def _crashes_leave_no_descriptors() -> Iterator[None]:
    """A crash is often played by dropping a journal, a follower or a ledger as it stands. The kernel would close their
    descriptors: so do we, or some hundred tests would take all that a process may have. Not while another thread runs,
    which may close its own at this very moment.
    """
    before = recording_descriptors()
    yield
    if threading.active_count() == 1:
        for descriptor in recording_descriptors() - before:
            os.close(descriptor)


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
