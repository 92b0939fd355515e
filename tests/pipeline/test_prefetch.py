"""Prefetching keeps the order, stays within its bounds, and ends with its consumer."""

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

from pipeline import prefetch as prefetch_module
from pipeline.prefetch import THREAD_NAME, prefetch, prefetch_map

DEADLINE = 540.0


def threads_remain() -> bool:
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


def assert_all_threads_end() -> None:
    deadline = time.monotonic() + DEADLINE
    while threads_remain():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def numbers_recorded_in(drawn: list[int]) -> Iterator[int]:
    for number in range(50):
        drawn.append(number)
        yield number


def test_results_come_in_the_order_of_the_items() -> None:
    def sometimes_late(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * 2

    assert list(prefetch_map(sometimes_late, range(20), threads=4, ahead=6)) == [2 * number for number in range(20)]
    assert list(prefetch_map(sometimes_late, [], threads=4, ahead=6)) == []
    assert list(prefetch(range(20), ahead=6)) == list(range(20))
    assert_all_threads_end()


def test_calls_run_at_the_same_time() -> None:
    all_running = threading.Barrier(4)
    assert len(list(prefetch_map(lambda _: all_running.wait(DEADLINE), range(4), threads=4, ahead=4))) == 4


def test_no_more_items_are_drawn_than_ahead_allows() -> None:
    drawn: list[int] = []
    for number in prefetch_map(lambda item: item, numbers_recorded_in(drawn), threads=2, ahead=3):
        assert len(drawn) <= number + 4
    drawn.clear()
    for number in prefetch(numbers_recorded_in(drawn), ahead=3):
        time.sleep(0.002)
        assert len(drawn) <= number + 4
    assert len(drawn) == 50


def test_items_are_drawn_while_the_consumer_is_busy() -> None:
    drawn: list[int] = []
    numbers = prefetch(numbers_recorded_in(drawn), ahead=3)
    next(numbers)
    deadline = time.monotonic() + DEADLINE
    while len(drawn) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_is_raised_in_order_and_ends_the_threads() -> None:
    def divide(number: int) -> float:
        return 6 / (3 - number)

    results = prefetch_map(divide, range(10), threads=3, ahead=5)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert_all_threads_end()

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    for numbers in (prefetch(broken(), ahead=5), prefetch_map(abs, broken(), threads=1, ahead=0)):
        assert next(numbers) == 1
        with pytest.raises(OSError, match="gone"):
            next(numbers)
    assert_all_threads_end()


def test_closing_the_iterator_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "LINGER_SECONDS", 0.0)  # the iterator is closed before the calls end
    called: list[int] = []
    hold = threading.Event()

    def call(number: int) -> None:
        called.append(number)
        if number:
            hold.wait(DEADLINE)

    results = prefetch_map(call, range(50), threads=2, ahead=8)
    next(results)
    results.close()
    hold.set()
    assert_all_threads_end()
    assert max(called) <= 2, "calls that had not begun were cancelled"

    numbers = prefetch(range(50), ahead=8)
    next(numbers)
    numbers.close()
    assert_all_threads_end()


def test_a_call_that_does_not_end_does_not_block_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "LINGER_SECONDS", 0.1)
    started, hold = threading.Event(), threading.Event()

    def call(number: int) -> None:
        if number:
            started.set()
            hold.wait(DEADLINE)

    results = prefetch_map(call, range(50), threads=2, ahead=8)
    next(results)
    assert started.wait(DEADLINE)
    results.close()
    assert threads_remain()
    hold.set()
    assert_all_threads_end()


def test_a_process_exits_while_a_call_is_running() -> None:
    """Otherwise Ctrl-C would take minutes while a call waits for a store that does not answer."""
    script = """
import time
from pipeline.prefetch import prefetch_map

started = []
results = prefetch_map(lambda seconds: (started.append(seconds), time.sleep(seconds)), [0, 600], threads=2, ahead=1)
next(results)
while len(started) < 2:
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, check=True)


def test_a_process_exits_cleanly_while_arrow_reads(tmp_path: Path) -> None:
    """Python ends daemon threads in a way that makes Arrow's C++ code abort the process."""
    table = pa.table({"image": [os.urandom(2**23) for _ in range(8)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)  # so that the thread is always reading
    script = f"""
from pipeline.prefetch import prefetch
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Shard

samples = prefetch(read_shard(Shard(name="a", url={str(tmp_path / "a.parquet")!r}, kind="parquet")), ahead=3)
print(next(samples).index)
samples.close()
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, check=True)


def test_an_idle_thread_keeps_no_result_alive() -> None:
    class Pixels:
        pass

    results = prefetch_map(lambda number: Pixels(), count(), threads=1, ahead=0)
    kept = [weakref.ref(next(results)) for _ in range(3)]
    deadline = time.monotonic() + DEADLINE
    while any(reference() is not None for reference in kept):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    results.close()
