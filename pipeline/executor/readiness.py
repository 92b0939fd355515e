"""Checks that enough workers of a run become ready, and stay so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pipeline.errors import RunFailed
from pipeline.executor.actors import ActorGroup

log = logging.getLogger(__name__)

UNSCHEDULED_WARNING_SECONDS = 30.0
"""Time without any scheduled worker after which a warning is logged. An autoscaler may be adding nodes."""


class ReadinessCheck:
    """Warns if no worker has been scheduled for a while, and ends the run if too few are ready for too long.

    Args:
        groups: The actors of the run.
        start_timeout: Seconds with too few ready workers after which the run fails.
        describe_cluster: Returns a sentence about the resources of the cluster.
    """

    def __init__(self, groups: Sequence[ActorGroup], start_timeout: float, describe_cluster: Callable[[], str]) -> None:
        self._groups = groups
        self._start_timeout = start_timeout
        self._describe_cluster = describe_cluster
        self._started_at = self._enough_at = time.monotonic()
        self._warned = False

    def check(self, unfinished: int) -> None:
        """Check the actors at this moment.

        Args:
            unfinished: Number of shards that are waiting or in flight.

        Raises:
            RunFailed: Too few workers have been ready for `start_timeout` seconds.
        """
        now = time.monotonic()
        if self._has_enough_workers(unfinished):
            self._enough_at = now
        if not self._warned and now - self._started_at > UNSCHEDULED_WARNING_SECONDS:
            self._warned = True
            if all(actor.scheduled_at is None for group in self._groups for actor in group.actors):
                log.warning(
                    "no worker has been scheduled yet (%s). %s", self._describe_groups(), self._describe_cluster()
                )
        if now - self._enough_at > self._start_timeout:
            raise RunFailed(
                f"too few workers became ready within {self._start_timeout:.0f} s ({self._describe_groups()}). "
                f"{self._describe_cluster()}"
            )

    def _has_enough_workers(self, unfinished: int) -> bool:
        """Return True if any worker is ready, and every group has its minimum or one for each unfinished shard."""
        ready = [sum(actor.ready for actor in group.actors) for group in self._groups]
        needed = [min(group.spec.min_workers, unfinished) for group in self._groups]
        return any(ready) and all(count >= minimum for count, minimum in zip(ready, needed, strict=True))

    def _describe_groups(self) -> str:
        return "; ".join(map(str, self._groups))
