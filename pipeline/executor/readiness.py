"""Checks that enough workers of a run become ready, and stay so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pipeline.errors import RunFailed
from pipeline.executor.actors import Actor, ActorGroup
from pipeline.executor.cluster import ClusterWatch

log = logging.getLogger(__name__)

UNSCHEDULED_WARNING_SECONDS = 30.0
"""Time without any scheduled worker after which a warning is logged. An autoscaler may be adding nodes."""
WAIT_WARNING_SECONDS = 600.0
"""Interval between two warnings that the run waits for resources which are in use."""


class ReadinessCheck:
    """Warns if no worker has been scheduled for a while, and ends the run if too few are ready for too long.

    The time to wait for a place on a node and the time to load the model are separate. Where the nodes have the
    resources, but other jobs use them, the run waits for its place without a limit.

    Args:
        groups: The actors of the run.
        watch: The watch over the cluster.
        start_timeout: Seconds that enough workers may have a place without enough of them being ready.
        place_timeout: Seconds that the nodes may lack the resources for enough workers.
    """

    def __init__(
        self, groups: Sequence[ActorGroup], watch: ClusterWatch, *, start_timeout: float, place_timeout: float
    ) -> None:
        self._groups = groups
        self._watch = watch
        self._start_timeout, self._place_timeout = start_timeout, place_timeout
        self._loading_seconds = self._lacking_seconds = self._unscheduled_seconds = 0.0
        self._warn_after = UNSCHEDULED_WARNING_SECONDS
        self._checked_at = time.monotonic()

    def check(self, unfinished: int) -> None:
        """Check the actors at this moment.

        Args:
            unfinished: Number of shards that are waiting or in flight.

        Raises:
            RunFailed: Too few workers have been ready for too long.
        """
        now = time.monotonic()
        passed, self._checked_at = now - self._checked_at, now
        if self._has_enough(unfinished, lambda actor: actor.ready):
            self._loading_seconds = self._lacking_seconds = 0.0
        elif self._has_enough(unfinished, lambda actor: actor.scheduled_at is not None):
            self._loading_seconds += passed
            self._lacking_seconds = 0.0
        elif self._has_room(unfinished):
            self._lacking_seconds = 0.0
        else:
            self._lacking_seconds += passed
        self._warn(passed)
        if self._loading_seconds > self._start_timeout:
            event = f"too few workers loaded their model within {self._start_timeout:.0f} s (--start-timeout"
        elif self._lacking_seconds > self._place_timeout:
            event = f"no nodes with room for enough workers came within {self._place_timeout:.0f} s (--place-timeout"
        else:
            return
        raise RunFailed(f"{event}; {self._describe_groups()}). {self._watch.describe()}")

    def place_lost(self) -> None:
        """Give workers the whole time to load the model again, because one of them has lost its node."""
        self._loading_seconds = 0.0

    def _warn(self, passed: float) -> None:
        if any(actor.scheduled_at is not None for group in self._groups for actor in group.actors):
            self._unscheduled_seconds, self._warn_after = 0.0, UNSCHEDULED_WARNING_SECONDS
            return
        self._unscheduled_seconds += passed
        if self._unscheduled_seconds > self._warn_after:
            self._warn_after = self._unscheduled_seconds + WAIT_WARNING_SECONDS
            log.warning("no worker has been scheduled yet (%s). %s", self._describe_groups(), self._watch.describe())

    def _has_enough(self, unfinished: int, counts: Callable[[Actor], bool]) -> bool:
        """Return True if any worker counts, and every group has its minimum or one for each unfinished shard."""
        numbers = [sum(map(counts, group.actors)) for group in self._groups]
        return any(numbers) and all(
            number >= self._needed(group, unfinished) for number, group in zip(numbers, self._groups, strict=True)
        )

    def _has_room(self, unfinished: int) -> bool:
        """Return True if the nodes have the resources for the needed workers, even if other jobs use them now."""
        rooms = [
            sum(
                group.spec.fits_into(node.resources, node.labels)
                for name, node in self._watch.nodes.items()
                if name not in group.avoided
            )
            for group in self._groups
        ]
        return any(rooms) and all(
            room >= self._needed(group, unfinished) for room, group in zip(rooms, self._groups, strict=True)
        )

    def _needed(self, group: ActorGroup, unfinished: int) -> int:
        return min(group.spec.min_workers, unfinished)

    def _describe_groups(self) -> str:
        return "; ".join(map(str, self._groups))
