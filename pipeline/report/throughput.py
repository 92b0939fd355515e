"""The throughput of a run over time, computed from its commit records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.output.commit import Commit

MAX_BINS = 60
"""Largest number of intervals."""
BINS_PER_SHARD = 4
"""Largest number of intervals for each shard: a record has only the mean rate of its shard."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Throughput of a run over its working time, during which at least one shard was in flight.

    Attributes:
        rates: Images per second in intervals of equal length; one interval if there is one shard.
        seconds: Length of the working time.
        images: Number of images.
        pauses: Working time, in seconds, at which the run was idle between a stop and the next start.
    """

    rates: Sequence[float]
    seconds: float
    images: int
    pauses: Sequence[float]


def throughput(commits: Iterable[Commit]) -> Throughput | None:
    """Compute the throughput, with the images of each shard spread evenly over its duration.

    Args:
        commits: Records of done shards.

    Returns:
        The throughput; None if no record has times.
    """
    timed = sorted((c.started, c.finished, c.rows) for c in commits if c.finished > c.started > 0)
    if not timed:
        return None
    starts, ends, rows = (np.array(column, float) for column in zip(*timed, strict=True))
    last_end = np.maximum.accumulate(ends)
    idle = np.maximum(starts[1:] - last_end[:-1], 0)
    # Clock time is converted to working time by subtracting all idle time before it.
    idle_before = np.concatenate([[0.0], np.cumsum(idle)])

    def working_time(clock: np.ndarray) -> np.ndarray:
        return clock - starts[0] - idle_before[np.searchsorted(starts[1:], clock, side="right")]

    begin, end = working_time(starts), working_time(ends)
    seconds = float(end.max())
    bins = min(MAX_BINS, BINS_PER_SHARD * len(timed)) if len(timed) > 1 else 1
    edges = np.linspace(0, seconds, bins + 1)
    # Images done by each edge, summed over blocks of shards to bound memory.
    done = np.zeros(bins + 1)
    for start in range(0, len(rows), 4096):
        b, e, n = (values[start : start + 4096, None] for values in (begin, end, rows))
        done += (n * np.clip((edges[None] - b) / (e - b), 0, 1)).sum(0)
    long = idle > seconds / bins
    return Throughput(
        rates=(np.diff(done) * bins / seconds).tolist(),
        seconds=seconds,
        images=int(rows.sum()),
        pauses=begin[1:][long].tolist(),
    )
