"""Which keys this root has seen accepted, and that none can be read from it."""

import os
import threading
from pathlib import Path

import pytest
from journals import make_root
from structlog.testing import capture_logs

from ingestor.capture import connector
from ingestor.capture.connector import KnownKey
from ingestor.layout import Layout, write_whole

KEY = "abcdefghij0123456789"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path)


def remember(key: KnownKey) -> None:
    key.remember()
    key.settle()


def test_a_key_is_known_once_it_was_accepted_and_to_every_later_run(layout: Layout) -> None:
    key = KnownKey(layout, KEY)
    assert not key.accepted
    key.remember()
    assert key.accepted
    key.settle()
    assert KnownKey(layout, KEY).accepted
    assert not KnownKey(layout, KEY + "x").accepted


def test_a_second_key_is_remembered_beside_the_first(layout: Layout) -> None:
    remember(KnownKey(layout, KEY))
    remember(KnownKey(layout, "another"))
    assert KnownKey(layout, KEY).accepted
    assert KnownKey(layout, "another").accepted


def test_the_key_itself_is_nowhere(layout: Layout) -> None:
    remember(KnownKey(layout, KEY))
    stored = layout.accepted_keys.read_text()
    assert KEY not in stored
    assert layout.accepted_keys.stat().st_mode & 0o777 == 0o640
    assert list(layout.staging.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"salt":"xy","hashes":[]}', '{"salt":"00"}', '{"salt":1}'])
def test_a_memory_that_a_power_cut_took_is_begun_anew(layout: Layout, text: str) -> None:
    layout.accepted_keys.write_text(text)
    key = KnownKey(layout, KEY)
    assert not key.accepted
    remember(key)
    assert KnownKey(layout, KEY).accepted


def test_a_disk_that_refuses_ends_nothing_and_is_tried_again(layout: Layout) -> None:
    key = KnownKey(layout, KEY)
    layout.staging.rmdir()
    with capture_logs() as logs:
        remember(key)
    assert key.accepted
    assert [one["event"] for one in logs] == ["key.unremembered"]
    assert KEY not in str(logs)
    layout.staging.mkdir()
    remember(key)
    assert KnownKey(layout, KEY).accepted


def test_nobody_waits_for_a_disk_that_does_not_answer(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def write_late(path: Path, text: str, staging: Path) -> None:
        answers.wait()
        write_whole(path, text, staging)

    monkeypatch.setattr(connector, "write_whole", write_late)
    key, before = KnownKey(layout, KEY), threading.active_count()
    for _ in range(3):  # connections
        key.remember()
        assert key.accepted
    assert threading.active_count() == before + 1  # however many connections come and go meanwhile
    assert not layout.accepted_keys.exists()
    answers.set()
    key.settle()
    assert KnownKey(layout, KEY).accepted


def test_a_memory_that_can_not_be_read_is_told(layout: Layout) -> None:
    os.mkdir(layout.accepted_keys)  # noqa: PTH102  a folder in the file's place: no permission bits, for root reads all
    with capture_logs() as logs:
        KnownKey(layout, KEY)
    assert [one["event"] for one in logs] == ["keys.forgotten"]
