"""Seconds of each step of the work, summed over threads and samples."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class StepTimer:
    """Call it with the name of a step as a context manager; `seconds` holds the sums so far."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self.seconds[name] += elapsed

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the seconds until each of them comes are those of step `name`."""
        iterator, end = iter(items), object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]
