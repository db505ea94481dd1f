"""One line a scenario at the end of the test run: what it went through, and what that cost."""

from collections.abc import Iterator

import pytest
from harness import Tally

_TALLIES = pytest.StashKey[list[Tally]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLIES] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The account of this scenario, shown at the end; a scenario that never began has none."""
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
