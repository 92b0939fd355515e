"""How fast a run was over its time, as its commit records tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.output.commit import Commit

BINS = 60


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """rates: images a second in parts of equal length. seconds: in which there was a shard in hand. images: in all.

    pauses: seconds of work after which the run lay still, because it was stopped and started again.
    """

    rates: Sequence[float]
    seconds: float
    images: int
    pauses: Sequence[float]


def throughput(commits: Iterable[Commit]) -> Throughput | None:
    """Of done shards, the images of each spread evenly over its time; None where no record has a time."""
    timed = sorted((c.started, c.finished, c.rows) for c in commits if c.finished > c.started > 0)
    if not timed:
        return None
    starts, ends, rows = (np.array(column, float) for column in zip(*timed, strict=True))
    last_end = np.maximum.accumulate(ends)
    idle = np.maximum(starts[1:] - last_end[:-1], 0)
    # Time of the clock → time of work: what lay still before a moment is taken off.
    moments, lost = starts[1:], np.cumsum(idle)

    def worked(clock: np.ndarray) -> np.ndarray:
        before = np.searchsorted(moments, clock, side="right")
        return clock - starts[0] - np.concatenate([[0.0], lost])[before]

    begin, end = worked(starts), worked(ends)
    seconds = float(end.max())
    edges = np.linspace(0, seconds, BINS + 1)
    # Images that were done by each edge, summed over shards a part at a time so that memory stays small.
    done = np.zeros(BINS + 1)
    for part in range(0, len(rows), 4096):
        b, e, n = (values[part : part + 4096, None] for values in (begin, end, rows))
        done += (n * np.clip((edges[None] - b) / (e - b), 0, 1)).sum(0)
    long = idle > seconds / BINS
    return Throughput(
        rates=(np.diff(done) * BINS / seconds).tolist(),
        seconds=seconds,
        images=int(rows.sum()),
        pauses=begin[1:][long].tolist(),
    )
