"""Work in threads, ahead of whoever uses its results: so files are read, images decoded and masks encoded."""

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

LINGER_SECONDS = 5.0
"""A call that is under way at the end is waited for so long: a process that ends within one of Arrow's would crash."""


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`call` of each item, in the order of the items, made in threads while the consumer is busy with earlier results.

    items: drawn in the consumer's thread, up to `ahead` beyond the one whose result is given. An error of a call is
    raised in the place of its result. The threads end with the iterator, whether it is exhausted, raises or is closed;
    only calls that take longer than `LINGER_SECONDS` then outlive it.
    """
    tasks: Tasks = SimpleQueue()
    # Not an executor's, which the end of the process would wait for: one may ask a store that is away for minutes.
    workers = [threading.Thread(target=_work, args=(tasks,), name="ahead", daemon=True) for _ in range(threads)]
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
        _end(workers, tasks)


def draw_ahead(items: Iterable[Item], *, ahead: int) -> Generator[Item, None, None]:
    """The items, drawn in one thread, up to `ahead` beyond the one that is given; else as `map_ahead`."""
    iterator, end = iter(items), object()
    with closing(map_ahead(lambda _: next(iterator, end), count(), threads=1, ahead=ahead)) as drawn:
        yield from takewhile(lambda item: item is not end, drawn)


def _end(workers: list[threading.Thread], tasks: Tasks) -> None:
    deadline = time.monotonic() + LINGER_SECONDS
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _work(tasks: Tasks) -> None:
    for task in iter(tasks.get, None):
        task()
        del task  # or it would keep its image until the next one comes


def _run(future: Future[Result], call: Callable[[Item], Result], item: Item) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call(item))
        except BaseException as error:
            future.set_exception(error)
