"""Which gap a run finds open as it starts, by how the last one ended. With a venue: test_recording."""

from pathlib import Path

import pytest
from prepared import prepared_recording
from structlog.testing import capture_logs

from ingestor.ledger import list_ledgers, now_us, read_facts


@pytest.mark.parametrize(("age_s", "cause"), [(1, "restart"), (61, "shutdown")])
def test_a_start_soon_after_a_stop_is_a_restart(tmp_path: Path, age_s: int, cause: str) -> None:
    with prepared_recording(tmp_path) as first:
        first.gaps.open("shutdown", now_us() - age_s * 1_000_000)
        first.ledger.record("run.stopped", error=None)
    with prepared_recording(tmp_path) as second:
        assert second.gaps.whole is not None
        assert second.gaps.whole.cause == cause


def test_it_begins_behind_what_was_heard_of_its_time(tmp_path: Path) -> None:
    heard_us = now_us()
    with prepared_recording(tmp_path) as first:
        first.gaps.open("stall", heard_us - 10, heard_us=heard_us)
        first.ledger.record("run.stopped", error=None)
    with prepared_recording(tmp_path) as second:
        assert second.gaps.whole is not None
        assert second.gaps.whole.since_us == heard_us


def test_a_run_that_never_said_goodbye_crashed(tmp_path: Path) -> None:
    with prepared_recording(tmp_path) as first:
        (ledger,) = list_ledgers(first.layout)
        last_word_us = next(iter(read_facts(ledger)))["at"]
    with capture_logs() as logs, prepared_recording(tmp_path) as second:
        gap = second.gaps.whole
    assert gap is not None
    assert gap.cause == "crash"
    assert gap.since_us <= last_word_us
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["crash.found"]


def test_a_first_run_inherits_nothing(tmp_path: Path) -> None:
    with prepared_recording(tmp_path) as first:
        assert first.gaps.whole is None
        assert first.run == 1
