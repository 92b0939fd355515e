"""The progress of a run on the console: a bar with an estimate on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.executor.protocol import RunState

LINE_SECONDS = 15.0
"""Interval between two lines where there is no terminal."""
STEPS_PER_SHARD = 1000
"""Steps of the bar for each shard, so that the bar also moves within shards."""
SHORTEST_RATE_SECONDS = 1.0
"""The rate is never measured over less time."""
LARGEST_SHARE_IN_FLIGHT = 0.95
"""A shard in flight never counts for more than this share of a shard."""


class ProgressBar:
    """Counts the shards and images of a run and shows them. Use as a context manager.

    Args:
        total_shards: Number of shards to label.
        console: Where to show the progress.
        shown: False prints nothing.
    """

    def __init__(self, total_shards: int, *, console: Console, shown: bool = True) -> None:
        self._total = total_shards
        self._console = console
        self._shown = shown
        self._started = time.monotonic()
        self._line_at = self._started
        self._done_shards = 0
        self._done_images = 0
        self._images_before = 0
        self._images_in_flight = 0
        self._workers = 0
        self._waiting = False
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("labelling"),
            BarColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        total = max(1, total_shards) * STEPS_PER_SHARD
        self._task = self._bar.add_task("labelling", total=total, status="starting workers")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # nothing waits after a successful run, even if there was no update since
            self._print_waiting((), self._workers)
        self._refresh()
        self._bar.stop()

    def shard_finished(self, images: int) -> None:
        """Count a shard that is done, or one that has failed in all its attempts as 0 images."""
        self._done_shards += 1
        self._done_images += images
        self._images_in_flight = max(0, self._images_in_flight - images)  # until the next update
        self._refresh()

    def update(self, state: RunState) -> None:
        """Show the state of the run."""
        self._print_waiting(state.stores_waited_for, state.ready)
        if not self._workers:  # the rate counts neither the time without workers nor the images before it
            self._started, self._images_before = time.monotonic(), self._done_images + state.samples
        self._workers, self._images_in_flight = state.ready, state.samples
        self._refresh()

    def _print_waiting(self, waiting: Sequence[str], workers: int) -> None:
        """Print a line when workers begin to wait for a store, and one when none of them does any more."""
        if bool(waiting) == self._waiting or not self._shown:
            return
        self._waiting = bool(waiting)
        line = "all workers have resumed"
        if waiting:
            line = f"{len(waiting)} of {workers} workers are waiting: {waiting[0]}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def status(self) -> str:
        """Return the state as a phrase: shards, images, images per second and workers."""
        if not self._workers:
            return f"{self._done_shards}/{self._total} shards · starting workers"
        images = self._done_images + self._images_in_flight
        seconds = max(SHORTEST_RATE_SECONDS, time.monotonic() - self._started)
        rate = max(0, images - self._images_before) / seconds
        workers = f"{self._workers} worker{'' if self._workers == 1 else 's'}"
        return f"{self._done_shards}/{self._total} shards · {images} images · {rate:.1f}/s · {workers}"

    def _completed_shards(self) -> float:
        """Return the done shards, plus shards in flight by the mean number of images in the done ones."""
        if not self._done_images:
            return self._done_shards
        images_per_shard = self._done_images / self._done_shards
        in_flight = min(LARGEST_SHARE_IN_FLIGHT * self._workers, self._images_in_flight / images_per_shard)
        return min(self._total, self._done_shards + in_flight)

    def _refresh(self) -> None:
        self._bar.update(self._task, completed=self._completed_shards() * STEPS_PER_SHARD, status=self.status())
        now = time.monotonic()
        if self._shown and not self._console.is_terminal and now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            self._console.print(self.status(), highlight=False)
