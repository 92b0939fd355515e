"""How fast each host labels, and which shards take the longest, from commit records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any, NamedTuple

from pipeline.output.commit import Commit

SLOWEST = 3
"""Shards that are named."""


class SlowShard(NamedTuple):
    """A shard by the time that its last attempt took.

    Attributes:
        seconds: From the start of the attempt to the commit record.
        shard: Name of the shard.
        images: Number of rows.
        host: Host of the worker.
    """

    seconds: float
    shard: str
    images: int
    host: str


@dataclass
class WorkStatistics:
    """Sums over commit records, in memory that grows with the number of hosts only.

    Attributes:
        images: Rows by host.
        seconds: Seconds in which a worker was labelling a shard, by host.
        slowest: The `SLOWEST` slowest shards, the slowest first.
    """

    images: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    slowest: list[SlowShard] = field(default_factory=list)

    @classmethod
    def of(cls, commits: Iterable[Commit]) -> WorkStatistics:
        """Return the statistics of records."""
        work = cls()
        for commit in commits:
            work.add(commit)
        return work

    def add(self, commit: Commit) -> None:
        """Add a record of a done shard; one without times or without rows does not count."""
        seconds = commit.finished - commit.started
        if seconds <= 0 or not commit.rows:
            return
        self.images[commit.worker] += commit.rows
        self.seconds[commit.worker] += seconds
        shard = SlowShard(round(seconds, 3), commit.shard, commit.rows, commit.worker)
        self.slowest = nlargest(SLOWEST, [*self.slowest, shard])

    def rates(self) -> dict[str, float]:
        """Return the images per second of one worker while it labels a shard, by host."""
        return {host: self.images[host] / seconds for host, seconds in sorted(self.seconds.items())}

    def plain(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        rates = {host: round(rate, 3) for host, rate in self.rates().items()}
        return {"images_per_second": rates, "slowest": [shard._asdict() for shard in self.slowest]}
