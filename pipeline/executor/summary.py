"""The summary of a labelling run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.output.reconcile import GoneShards


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What OUT holds after a run.

    Attributes:
        shards: Number of shards of SRC.
        done_before: Number of shards that earlier runs had labelled.
        failed: Errors of the failed shards by name.
        counts: Rows by status. Rows that failed in earlier runs are counted together, as "failed before".
        seconds: Seconds by step of the shards labelled in this run.
        images: Number of rows labelled in this run.
        wall: Wall time of this run in seconds.
        broken: The status "truncated" or "damaged" of each shard of which only a part could be read, by name.
        gone: What became of the label shards whose source is no longer in SRC; None if there are none.
        notes: What was noticed about shards that this run has labelled, by name.
        left_out: What SRC holds besides the shards, by kind: the count and the first examples.
        set_aside: Why nodes got no more workers, by host and node id.
        nodes: ``{workers, gpu}`` of each host: how many workers have become ready there, and the name of their GPU.
        work: Images per second of one worker by host, and the slowest shards of this run.
    """

    shards: int
    done_before: int
    failed: Mapping[str, str]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    images: int
    wall: float
    broken: Mapping[str, str]
    gone: GoneShards | None
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    set_aside: Mapping[str, str]
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    work: Mapping[str, Any] = field(default_factory=dict)

    def failed_share(self) -> float:
        """Return the share of rows whose status is not ok, 0 to 1."""
        total = sum(self.counts.values())
        return 1 - self.counts.get("ok", 0) / total if total else 0.0
