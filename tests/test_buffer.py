"""The Buffer between two threads: nothing is lost, nothing waits for ever, and it is bounded."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from recorders import eventually

from ingestor.capture.buffer import Buffer, FrameBlock

MB = 1 << 20
SOON_S = 0.01
LONG_S = 60.0


def take_all(buffer: Buffer, linger_s: float = 0.0) -> list[FrameBlock]:
    """Until it is closed and drained, as the recorder does."""
    blocks: list[FrameBlock] = []
    while not buffer.drained:
        block = buffer.take(linger_s, SOON_S)
        if block is not None:
            blocks.append(block)
    return blocks


# basic


def test_frames_come_out_in_order_with_the_time_they_came() -> None:
    buffer = Buffer(MB)
    assert buffer.put(1, [b"a", b"b"], 10)
    assert buffer.put(1, [b"c"], 20)
    block = buffer.take(0.0, LONG_S)
    assert block is not None
    assert block.connection == 1
    assert block.frames.payloads == [b"a", b"b", b"c"]
    assert block.frames.received_us == [10, 10, 20]
    assert buffer.bytes == 0
    assert buffer.frames_put == 3
    assert buffer.frames_waiting == 0


def test_a_block_is_of_one_connection() -> None:
    buffer = Buffer(MB)
    for connection, payload in [(1, b"a"), (1, b"b"), (2, b"c"), (3, b"d")]:
        buffer.put(connection, [payload], 0)
    buffer.close()
    assert [(block.connection, block.frames.payloads) for block in take_all(buffer)] == [
        (1, [b"a", b"b"]),
        (2, [b"c"]),
        (3, [b"d"]),
    ]


def test_connections_that_are_read_at_once_take_turns() -> None:
    """A block each; and none is further ahead of the other than a moment."""
    clock = [100.0]
    buffer = Buffer(MB, clock=lambda: clock[0])
    for number in range(40):
        clock[0] = 100.0 + number / 100
        buffer.put(1 + number % 2, [b"%d" % number], number)
    buffer.close()
    blocks = take_all(buffer)
    assert [block.connection for block in blocks] == [1, 2, 1]
    assert sorted(int(payload) for block in blocks for payload in block.frames.payloads) == list(range(40))
    for block in blocks:
        assert block.frames.received_us == sorted(block.frames.received_us)
    assert [block.frames.received_us[-1] for block in blocks] == [20, 39, 38]


def test_the_first_frame_wakes_a_recorder_that_waits() -> None:
    buffer = Buffer(MB)
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(buffer.take, 0.0, LONG_S)
        eventually(lambda: buffer._listens, "the recorder waits")
        buffer.put(1, [b"a"], 0)
        block = taken.result(timeout=LONG_S / 2)
    assert block is not None
    assert block.frames.payloads == [b"a"]


def test_a_full_block_wakes_a_recorder_that_waits_for_company() -> None:
    buffer = Buffer(MB)
    with ThreadPoolExecutor() as pool:
        buffer.put(1, [b"a"], 0)
        taken = pool.submit(buffer.take, LONG_S, SOON_S)
        eventually(lambda: buffer._listens, "the recorder waits")
        buffer.put(1, [bytes(MB)], 0)
        block = taken.result(timeout=LONG_S / 2)
    assert block is not None
    assert len(block.frames) == 2


def test_nothing_within_the_time_is_none() -> None:
    assert Buffer(MB).take(0.0, SOON_S) is None


def test_frames_wait_for_company_until_they_are_due() -> None:
    clock = [100.0]
    buffer = Buffer(MB, clock=lambda: clock[0])
    buffer.put(1, [b"a"], 0)
    clock[0] = 100.3
    assert buffer.lag_s() == pytest.approx(0.3)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(buffer.take, 10.0, LONG_S)
        buffer.put(1, [b"b"], 0)
        assert not waiting.done()
        clock[0] = 110.0
        buffer.put(1, [bytes(MB)], 0)  # a full block waits for nobody
        block = waiting.result()
    assert block is not None
    assert len(block.frames) == 3
    assert buffer.lag_s() == 0.0


def test_a_full_buffer_is_taken_at_once_however_small_it_is() -> None:
    """Below a block's size, or its reader would stand still for the whole linger each time."""
    buffer = Buffer(64 << 10)
    with ThreadPoolExecutor(1) as executor:
        putting = executor.submit(buffer.put, 1, [bytes(64 << 10)], 0)
        assert buffer.take(LONG_S, LONG_S) is not None
        assert putting.result()


# invariants


def test_a_full_buffer_makes_the_reader_wait_and_loses_nothing() -> None:
    dice = random.Random(7)
    chunks = [[dice.randbytes(dice.randint(0, 4000)) for _ in range(dice.randint(1, 20))] for _ in range(400)]
    buffer = Buffer(256 << 10)
    highest = 0

    def put_all() -> None:
        nonlocal highest
        for number, chunk in enumerate(chunks):
            assert buffer.put(1 + number // 100, chunk, number)
            highest = max(highest, buffer.bytes)
        buffer.close()

    with ThreadPoolExecutor(1) as executor:
        putting = executor.submit(put_all)
        blocks = take_all(buffer)
        putting.result()
    assert [payload for block in blocks for payload in block.frames.payloads] == [p for chunk in chunks for p in chunk]
    assert buffer.pauses > 0
    assert buffer.paused_s > 0
    assert highest < 256 << 10
    assert buffer.frames_put == sum(map(len, chunks))


def test_a_flood_of_empty_frames_is_bounded_too() -> None:
    buffer = Buffer(64 << 10)
    with ThreadPoolExecutor(1) as executor:
        putting = executor.submit(buffer.put, 1, [b""] * 2000, 0)
        eventually(lambda: buffer.pauses, "a pause")
        assert not putting.done()
        assert buffer.take(0.0, LONG_S) is not None
        assert putting.result()


# Closing


def test_closing_wakes_a_reader_that_waits_and_keeps_its_frames() -> None:
    buffer = Buffer(64 << 10)
    with ThreadPoolExecutor(1) as executor:
        putting = executor.submit(buffer.put, 1, [bytes(100_000)], 0)
        eventually(lambda: buffer.pauses, "a pause")
        buffer.close()
        assert putting.result()
    assert not buffer.drained
    assert len(take_all(buffer)) == 1
    assert buffer.drained


def test_closing_wakes_a_recorder_that_waits() -> None:
    buffer = Buffer(MB)
    with ThreadPoolExecutor(2) as executor:
        empty = executor.submit(buffer.take, LONG_S, LONG_S)
        buffer.close()
        assert empty.result() is None
    lingering = Buffer(MB)
    lingering.put(1, [b"a"], 0)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(lingering.take, LONG_S, LONG_S)
        lingering.close()
        assert waiting.result() is not None


def test_what_comes_after_the_close_is_refused_and_not_counted() -> None:
    buffer = Buffer(MB)
    buffer.close()
    assert not buffer.put(1, [b"late"], 0)
    assert buffer.frames_put == 0
    assert buffer.drained


def test_who_waits_for_the_close_hears_of_it() -> None:
    buffer = Buffer(MB)
    assert not buffer.wait_closed(SOON_S)
    threading.Timer(SOON_S, buffer.close).start()
    assert buffer.wait_closed(LONG_S)
