"""Work in threads: in order, in bounds, and over when its consumer is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import prefetch as ahead
from pipeline.prefetch import draw_ahead, map_ahead

DEADLINE = 540.0


def threads_are_left() -> bool:
    return any(thread.name == "ahead" for thread in threading.enumerate())


def assert_no_threads_are_left() -> None:
    deadline = time.monotonic() + DEADLINE
    while threads_are_left():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counted(most: int, drawn: list[int]) -> Iterator[int]:
    for number in range(most):
        drawn.append(number)
        yield number


def test_results_come_in_the_order_of_the_items() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * 2

    assert list(map_ahead(late, range(20), threads=4, ahead=6)) == [2 * number for number in range(20)]
    assert list(map_ahead(late, [], threads=4, ahead=6)) == []
    assert list(draw_ahead(range(20), ahead=6)) == list(range(20))
    assert_no_threads_are_left()


def test_calls_run_at_the_same_time() -> None:
    meeting = threading.Barrier(4)
    assert len(list(map_ahead(lambda _: meeting.wait(DEADLINE), range(4), threads=4, ahead=4))) == 4


def test_no_more_than_was_said_is_drawn_ahead() -> None:
    drawn: list[int] = []
    for number in map_ahead(lambda item: item, counted(50, drawn), threads=2, ahead=3):
        assert len(drawn) <= number + 4
    drawn.clear()
    for number in draw_ahead(counted(50, drawn), ahead=3):
        time.sleep(0.002)
        assert len(drawn) <= number + 4
    assert len(drawn) == 50


def test_items_are_drawn_while_the_consumer_is_busy() -> None:
    drawn: list[int] = []
    numbers = draw_ahead(counted(50, drawn), ahead=3)
    next(numbers)
    deadline = time.monotonic() + DEADLINE
    while len(drawn) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_comes_in_its_turn_and_ends_the_threads() -> None:
    def halved(number: int) -> float:
        return 6 / (3 - number)

    results = map_ahead(halved, range(10), threads=3, ahead=5)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert_no_threads_are_left()

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    for numbers in (draw_ahead(broken(), ahead=5), map_ahead(abs, broken(), threads=1, ahead=0)):
        assert next(numbers) == 1
        with pytest.raises(OSError, match="gone"):
            next(numbers)
    assert_no_threads_are_left()


def test_a_consumer_that_stops_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LINGER_SECONDS", 0.0)  # it has stopped before the calls end
    called: list[int] = []
    hold = threading.Event()

    def call(number: int) -> None:
        called.append(number)
        if number:
            hold.wait(DEADLINE)

    results = map_ahead(call, range(50), threads=2, ahead=8)
    next(results)
    results.close()
    hold.set()
    assert_no_threads_are_left()
    assert max(called) <= 2, "those that had not begun were left out"

    numbers = draw_ahead(range(50), ahead=8)
    next(numbers)
    numbers.close()
    assert_no_threads_are_left()


def test_a_call_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LINGER_SECONDS", 0.1)
    began, hold = threading.Event(), threading.Event()

    def call(number: int) -> None:
        if number:
            began.set()
            hold.wait(DEADLINE)

    results = map_ahead(call, range(50), threads=2, ahead=8)
    next(results)
    assert began.wait(DEADLINE)
    results.close()
    assert threads_are_left()
    hold.set()
    assert_no_threads_are_left()


def test_a_process_ends_while_a_call_goes_on() -> None:
    """Ctrl-C while a store is away: the call that waits for it would go on for minutes."""
    script = """
import time
from pipeline.prefetch import map_ahead

begun = []
results = map_ahead(lambda seconds: (begun.append(seconds), time.sleep(seconds)), [0, 600], threads=2, ahead=1)
next(results)
while len(begun) < 2:
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, check=True)


def test_a_process_ends_well_while_arrow_reads(tmp_path: Path) -> None:
    """Arrow's code is C++, and Python ends daemon threads in a way that aborts it."""
    table = pa.table({"image": [os.urandom(2**23) for _ in range(8)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)  # so that the thread is reading at every moment
    script = f"""
from pipeline.prefetch import draw_ahead
from pipeline.readers.read import Shard, read_shard

samples = draw_ahead(read_shard(Shard(name="a", url={str(tmp_path / "a.parquet")!r}, kind="parquet")), ahead=3)
print(next(samples).index)
samples.close()
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, check=True)


def test_no_result_is_kept_by_a_thread_that_waits() -> None:
    class Pixels:
        pass

    results = map_ahead(lambda number: Pixels(), count(), threads=1, ahead=0)
    kept = [weakref.ref(next(results)) for _ in range(3)]
    deadline = time.monotonic() + DEADLINE
    while any(reference() is not None for reference in kept):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    results.close()
