"""Work done in threads ahead of its consumer: reading files, decoding images and encoding masks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from itertools import count, takewhile
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Tasks = SimpleQueue[Callable[[], None] | None]

THREAD_NAME = "prefetch"
LINGER_SECONDS = 5.0
"""Longest wait for running calls when the iterator ends. A process that exits during one of Arrow's calls crashes."""


def prefetch_map(
    call: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield ``call(item)`` for each item in order, computed in threads while the consumer handles earlier results.

    The threads end with the iterator, whether it is exhausted, raises or is closed; only calls that take longer than
    `LINGER_SECONDS` outlive it.

    Args:
        call: Called in a thread. Its error is raised in place of its result.
        items: Drawn in the consumer's thread, up to `ahead` beyond the item whose result is yielded.
        threads: Number of threads.
        ahead: Number of items that may be in progress or finished beyond the yielded one.
    """
    tasks: Tasks = SimpleQueue()
    # Not a ThreadPoolExecutor: the exit of the process would wait for its threads, and one of them may be waiting for
    # minutes for a store that does not answer.
    workers = [threading.Thread(target=_work, args=(tasks,), name=THREAD_NAME, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(Future())
            tasks.put(partial(_run, pending[-1], call, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        _join(workers, tasks)


def prefetch(items: Iterable[Item], *, ahead: int) -> Generator[Item, None, None]:
    """Yield the items, drawn in a thread up to `ahead` beyond the yielded one. Ends like `prefetch_map`."""
    iterator, end = iter(items), object()
    with closing(prefetch_map(lambda _: next(iterator, end), count(), threads=1, ahead=ahead)) as drawn:
        yield from takewhile(lambda item: item is not end, drawn)


def _join(workers: list[threading.Thread], tasks: Tasks) -> None:
    """Tell the threads to end and wait for them, for `LINGER_SECONDS` at most."""
    deadline = time.monotonic() + LINGER_SECONDS
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _work(tasks: Tasks) -> None:
    for task in iter(tasks.get, None):
        task()
        del task  # otherwise the thread would keep the image alive while it waits for the next task


def _run(future: Future[Result], call: Callable[[Item], Result], item: Item) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call(item))
        except BaseException as error:
            future.set_exception(error)
