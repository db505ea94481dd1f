"""Durations and sizes: what a person writes, and what is said where it is wrong."""

import pytest

from ingestor.config.sections import JournalSettings
from ingestor.texts import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("250ms", 0.25),
        ("20s", 20.0),
        ("1.5s", 1.5),
        ("15m", 900.0),
        ("2h", 7200.0),
        ("365d", 31536e3),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("512KB", 512 << 10), ("64MB", 64 << 20), ("1.5GB", 3 << 29), ("2 TB", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("seconds", "text"), [(900.0, "15m"), (150.0, "150s"), (0.1 + 0.2, "300ms"), (86400.0, "1d")])
def test_a_duration_is_shown_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3s", "1 0s", "15M", "1s2ms", "٣s", "nan", "infs", "9" * 400 + "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write it like 250ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "64mb", "64MiB", "1e3KB", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write it like 512KB"):
        parse_size(text)


@pytest.mark.parametrize("value", ["900", 900, "0", "1.5"])
def test_a_number_needs_its_unit(value: object) -> None:
    with pytest.raises(ValueError, match=f"`{value}` has no unit: write {value}s, {value}m or"):
        parse_duration(value)
    with pytest.raises(ValueError, match=f"`{value}` has no unit: write {value}MB or"):
        parse_size(value)


def test_a_python_caller_gives_seconds() -> None:
    assert JournalSettings(linger=0.02).linger == 0.02
