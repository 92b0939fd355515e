"""The rate of a run, in images per second."""

from __future__ import annotations

import time
from collections import deque

RATE_SECONDS = 300.0


class RateMeter:
    """Measures images per second over the last `RATE_SECONDS`, without the wait for the first worker."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._counts: deque[tuple[float, int]] = deque()  # (time, images so far)

    def start(self) -> None:
        """Start the clock when the first worker is ready; later calls do nothing."""
        if self._started is None:
            self._started = time.monotonic()

    def measure(self, now: float, images: int) -> tuple[float | None, float]:
        """Return images per second, and the seconds that they were measured over.

        Args:
            now: The time, in seconds of `time.monotonic`.
            images: Number of images that have been labelled so far.
        """
        if self._started is None:
            return None, 0.0
        self._counts.extend([(now, images)] if self._counts else [(self._started, 0), (now, images)])
        while len(self._counts) > 2 and self._counts[1][0] <= now - RATE_SECONDS:
            self._counts.popleft()
        since, before = self._counts[0]
        seconds = now - since
        return (max(0.0, (images - before) / seconds) if seconds else None), seconds
