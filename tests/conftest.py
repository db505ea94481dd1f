"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest
from journals import recording_descriptors


@pytest.fixture(autouse=True)
def _crashes_leave_no_descriptors() -> Iterator[None]:
    """A crash is often played by dropping a journal, a follower or a ledger as it stands. The kernel would close their
    descriptors: so do we, or some hundred tests would take all that a process may have.
    """
    before = recording_descriptors()
    yield
    for descriptor in recording_descriptors() - before:
        os.close(descriptor)
