"""The progress of a run: a bar with an estimate on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.executor.protocol import PoolState

LINE_SECONDS = 15.0
SCALE = 1000
"""Steps of the bar a shard, so that the bar moves within shards as well."""


class RunProgress:
    """Counts shards and images of a run. Use as a context manager; `shown=False` prints nothing."""

    def __init__(self, total_shards: int, *, console: Console, shown: bool = True) -> None:
        self._total = total_shards
        self._console = console
        self._shown = shown
        self._started = time.monotonic()
        self._line_at = self._started
        self._done_shards = 0
        self._done_images = 0
        self._in_hand = 0
        self._workers = 0
        self._waiting = False
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("labelling"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("labelling", total=max(1, total_shards) * SCALE, said="starting workers")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # a run that ended well waits no more, also where nobody has asked since
            self._tell_waiting((), self._workers)
        self._update()
        self._bar.stop()

    def shard_finished(self, images: int) -> None:
        """A shard is done (or failed for good: 0 images)."""
        self._done_shards += 1
        self._done_images += images
        self._in_hand = max(0, self._in_hand - images)  # until the workers are asked again
        self._update()

    def working(self, state: PoolState) -> None:
        """What the workers do now."""
        self._tell_waiting(state.stores_waited_for, state.ready)
        if not self._workers:  # loading the model is not labelling
            self._started = time.monotonic()
        self._workers, self._in_hand = state.ready, state.samples
        self._update()

    def _tell_waiting(self, waiting: Sequence[str], workers: int) -> None:
        if bool(waiting) == self._waiting or not self._shown:
            return
        self._waiting = bool(waiting)
        line = f"{len(waiting)} of {workers} workers wait: {waiting[0]}" if waiting else "all workers go on"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def said(self) -> str:
        """The state in a phrase: shards, images, images a second, workers."""
        if not self._workers:
            return f"{self._done_shards}/{self._total} shards · starting workers"
        images = self._done_images + self._in_hand
        rate = images / max(1e-9, time.monotonic() - self._started)
        workers = f"{self._workers} worker{'' if self._workers == 1 else 's'}"
        return f"{self._done_shards}/{self._total} shards · {images} images · {rate:.1f}/s · {workers}"

    def _completed(self) -> float:
        """Shards, those in hand by what a shard held so far; only whole ones until the first is done."""
        if not self._done_images:
            return self._done_shards
        each = self._done_images / self._done_shards
        return min(self._total, self._done_shards + min(0.95 * self._workers, self._in_hand / each))

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._completed() * SCALE, said=self.said())
        now = time.monotonic()
        if self._shown and not self._console.is_terminal and now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            self._console.print(self.said(), highlight=False)
