"""Judges workers and nodes by the shards that fail on them and succeed on others.

A worker is stuck when `STUCK_SHARDS` different shards have failed on it in a row. If `WITNESSES` of them then succeed
on other workers, the worker is to blame. The second time that other nodes show this for a node, the node is to blame.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pipeline.executor.shard_queue import Place

STUCK_SHARDS = 3
WITNESSES = 2
BLAMED_WORKERS = 2
"""A node is set aside when it has had this many workers that were to blame."""
FAILED_STARTS = 3
"""A node is set aside when this many workers could not load the model there since a shard last succeeded there."""
LONGEST_PAUSE = 60.0
"""Longest pause in seconds between two shards of a stuck worker whose errors may be those of the shards."""


@dataclass(kw_only=True, eq=False)
class Streak:
    """The shards that have failed on a worker since the last one that succeeded there.

    Attributes:
        errors: The last error of each shard by its name.
        environmental: Shards whose error seems to come from the node, a store or the model.
        witnesses: Nodes of the workers on which shards of the streak have succeeded, by shard.
        failed_at: When the last shard failed, in seconds of `time.monotonic`.
    """

    errors: dict[str, str] = field(default_factory=dict)
    environmental: set[str] = field(default_factory=set)
    witnesses: dict[str, str] = field(default_factory=dict)
    failed_at: float = 0.0

    @property
    def is_stuck(self) -> bool:
        return len(self.errors) >= STUCK_SHARDS

    @property
    def last_error(self) -> str:
        return next(reversed(self.errors.values()), "")

    def forget(self, shard: str) -> None:
        """Take a shard that is to blame itself out of the streak."""
        self.errors.pop(shard, None)
        self.environmental.discard(shard)


class Health:
    """The streaks of all workers, and the nodes that are set aside.

    Attributes:
        set_aside: Why each node that gets no more workers was set aside, by its id.
    """

    def __init__(self) -> None:
        self.set_aside: dict[str, str] = {}
        self._streaks: dict[Place, Streak] = {}
        self._orphans: defaultdict[str, list[Streak]] = defaultdict(list)
        self._blamed: Counter[str] = Counter()
        self._failed_starts: Counter[str] = Counter()
        self._replaced_all = False

    def joined(self, place: Place) -> None:
        """Record that a worker is ready. It continues the streak of a worker that has died on its node."""
        orphans = self._orphans[place.node]
        self._streaks[place] = orphans.pop() if orphans else Streak()

    def start_failed(self, node: str, error: str) -> bool:
        """Record that a worker could not load the model while others could.

        Returns:
            True if the node is set aside for that.
        """
        self._failed_starts[node] += 1
        if self._failed_starts[node] < FAILED_STARTS or node in self.set_aside:
            return False
        self.set_aside[node] = f"{FAILED_STARTS} workers could not start there, and others could elsewhere: {error}"
        return True

    def keep(self, places: Collection[Place]) -> None:
        """Forget all other workers, which were stopped or have died. Their successors continue their streaks."""
        for place in self._streaks.keys() - places:
            streak = self._streaks.pop(place)
            if streak.errors:
                self._orphans[place.node].append(streak)

    def succeeded(self, place: Place, shard: str) -> None:
        """Record that a shard is done, which ends the streak of its worker."""
        self._replaced_all = False
        self._failed_starts.pop(place.node, None)
        self._streaks[place] = Streak()
        for streak in self._all_streaks():
            if shard in streak.errors:
                streak.witnesses[shard] = place.node

    def failed(self, place: Place, shard: str, error: str, *, is_environmental: bool) -> None:
        """Record that a shard has failed on a worker."""
        own = self._streaks.get(place) or next(iter(self._orphans[place.node]), None) or Streak()
        if place not in self._streaks and own not in self._orphans[place.node]:
            self._streaks[place] = own
        others = [other for other in self._all_streaks() if other is not own and shard in other.errors]
        if not is_environmental and any(shard not in other.environmental for other in others):
            for streak in (own, *others):  # it fails everywhere, so the shard is to blame
                streak.forget(shard)
            return
        own.errors.pop(shard, None)
        own.errors[shard] = error
        own.failed_at = time.monotonic()
        if is_environmental:
            own.environmental.add(shard)

    def gave_up(self, shard: str) -> None:
        """Record that a shard has failed in all its attempts, so that nothing more is learnt from it."""
        for streak in self._all_streaks():
            streak.forget(shard)

    def is_stuck(self, place: Place) -> bool:
        """Return True if a worker has failed at too many shards in a row."""
        return place in self._streaks and self._streaks[place].is_stuck

    def may_work(self, place: Place) -> bool:
        """Return True if a worker may get a shard now."""
        streak = self._streaks.get(place)
        if streak is None or not streak.is_stuck:
            return True
        if streak.environmental:
            return False
        pause = min(LONGEST_PAUSE, 2.0 ** (len(streak.errors) - STUCK_SHARDS))
        return time.monotonic() - streak.failed_at >= pause

    def doubtful_shards(self) -> set[str]:
        """Return the shards that have failed on stuck workers."""
        return {shard for streak in self._streaks.values() if streak.is_stuck for shard in streak.errors}

    def blame(self) -> list[tuple[Place, str]]:
        """Return the workers that are to blame now, with the reason, and set nodes aside for which this is repeated."""
        blamed = []
        for place, streak in list(self._streaks.items()):
            if not (streak.is_stuck and len(streak.witnesses) >= WITNESSES):
                continue
            del self._streaks[place]
            reason = (
                f"{len(streak.errors)} shards in a row failed there, and {len(streak.witnesses)} of them succeeded "
                f"elsewhere: {streak.last_error}"
            )
            blamed.append((place, reason))
            self._blamed[place.node] += any(node != place.node for node in streak.witnesses.values())
            if self._blamed[place.node] >= BLAMED_WORKERS:
                self.set_aside.setdefault(place.node, reason)
        return blamed

    def resolve(self, places: Collection[Place]) -> tuple[list[Place], str]:
        """Decide what happens when all workers are stuck, so that none of them can show who is to blame.

        Errors that may be those of the shards are charged to them, and their workers go on. Workers with other errors
        are replaced.

        Args:
            places: All workers.

        Returns:
            The workers to replace; and the last error if that has been done before and every new worker is stuck too
            for a reason that is not a shard's, else "".
        """
        streaks = {place: self._streaks.pop(place) for place in places}
        sick = [place for place, streak in streaks.items() if streak.environmental]
        is_hopeless = self._replaced_all and len(sick) == len(streaks)
        self._replaced_all = bool(sick)
        return sick, streaks[sick[-1]].last_error if is_hopeless else ""

    def _all_streaks(self) -> Iterable[Streak]:
        yield from self._streaks.values()
        for orphans in self._orphans.values():
            yield from orphans
