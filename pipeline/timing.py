"""Wall time spent in each step of the work, summed over threads and samples."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

STEPS = (
    *("read", "decode", "resize", "encode", "text", "sample", "unet", "network", "clip", "aggregate"),
    *("affinity", "merge", "walk", "refine", "name", "agree", "decide", "results", "write"),
)
"""Names of the steps in the order of the work."""


def in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """Sort seconds by step into the order of `STEPS`; further stages of the method come before "decide"."""
    position = {name: number for number, name in enumerate(STEPS)}
    return dict(sorted(seconds.items(), key=lambda item: position.get(item[0], position["decide"] - 0.5)))


class StepTimer:
    """A thread-safe stopwatch: ``with step("decode"): …`` adds the seconds of the block to that step.

    The seconds of a step within another step count for the inner one only.

    Attributes:
        seconds: Seconds so far, by name of the step.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._of_thread = threading.local()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        before = getattr(self._of_thread, "inner", 0.0)
        self._of_thread.inner = 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self.seconds[name] += elapsed - self._of_thread.inner
            self._of_thread.inner = before + elapsed

    def iterate(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items and add the time that each of them takes to arrive to the step `name`."""
        iterator, end = iter(items), object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]
