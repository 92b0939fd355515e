"""The shards that are still to be labelled, how often each has been tried, and where."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.readers.samples import Shard

MAX_ATTEMPTS = 3
MAX_REQUEUES = 10
"""How often a shard may lose its worker without using up an attempt. Beyond that, the shard may be the cause."""
MAX_FREE_FAILURES = 3
"""How often a shard may fail without using up an attempt, because a node, a store or the model seems to be the cause.
Beyond that, the shard may be the cause."""


class Place(NamedTuple):
    """Where a shard is labelled: the id of a node, and a key of the worker on it."""

    node: str
    worker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One attempt at one shard.

    Attributes:
        shard: The shard.
        attempt: Number of the attempt, from 1.
        requeues: How often the shard was requeued because its worker's node was lost.
        free_failures: How often the shard failed without using up an attempt.
        tried: Where the shard has failed.
        charged: Workers that have used up an attempt by failing.
    """

    shard: Shard
    attempt: int
    requeues: int = 0
    free_failures: int = 0
    tried: tuple[Place, ...] = ()
    charged: tuple[str, ...] = ()

    def forgive(self, worker: str) -> Task:
        """Return the task with the attempts back that it has lost on a worker."""
        count = min(self.charged.count(worker), MAX_FREE_FAILURES - self.free_failures)
        if count <= 0:
            return self
        return dataclasses.replace(
            self,
            attempt=self.attempt - count,
            free_failures=self.free_failures + count,
            charged=tuple(other for other in self.charged if other != worker),
        )

    def may_go_to(self, place: Place, others: Collection[Place]) -> bool:
        """Return True unless another worker should get the task: one on a node where the shard has not failed yet,
        or else one that has not failed at it yet.
        """
        nodes = {tried.node for tried in self.tried}
        if place.node not in nodes:
            return True
        if any(other.node not in nodes for other in others):
            return False
        return place not in self.tried or all(other in self.tried for other in others)


class ShardQueue:
    """A queue of shards. A shard that failed goes to the end, until its attempts are used up.

    A failed shard goes to another worker on another node, as long as there is one.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._first: list[Task] = []
        self._new = deque(Task(shard=shard, attempt=1) for shard in shards)
        self._last: list[Task] = []
        self._unfinished = len(self._new)

    @property
    def unfinished(self) -> int:
        """Number of shards that are waiting or in flight."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Number of shards that no worker has."""
        return len(self._first) + len(self._new) + len(self._last)

    def take(self, place: Place | None = None, others: Collection[Place] = ()) -> Task | None:
        """Return the next task for a worker.

        Shards that have lost their worker, or have failed on another node through no fault of their own, come first.

        Args:
            place: Where the worker is; None if there is only one.
            others: Where all workers are that can take tasks, now or soon.

        Returns:
            The task; None if no shard is waiting, or if all waiting ones should go to other workers.
        """
        for number, task in enumerate(self._first):
            if place is None or (place not in task.tried and task.may_go_to(place, others)):
                return self._first.pop(number)
        if self._new:
            return self._new.popleft()
        for tasks in (self._first, self._last):
            for number, task in enumerate(tasks):
                if place is None or task.may_go_to(place, others):
                    return tasks.pop(number)
        return None

    def succeeded(self) -> None:
        """Record that a task is done."""
        self._unfinished -= 1

    def failed(self, task: Task, place: Place | None = None, *, is_free: bool = False) -> bool:
        """Record that a task failed.

        Args:
            task: The task.
            place: Where it failed.
            is_free: The shard is not to blame, so that this costs no attempt, unless it happens again and again.

        Returns:
            True if the shard will be retried.
        """
        if place is not None:
            task = dataclasses.replace(task, tried=(*task.tried, place))
        if is_free and task.free_failures < MAX_FREE_FAILURES:
            self._first.append(dataclasses.replace(task, free_failures=task.free_failures + 1))
            return True
        if task.attempt < MAX_ATTEMPTS:
            charged = task.charged if place is None else (*task.charged, place.worker)
            self._last.append(dataclasses.replace(task, attempt=task.attempt + 1, charged=charged))
            return True
        self._unfinished -= 1
        return False

    def requeue(self, task: Task) -> bool:
        """Put a task whose worker was lost with its node at the front of the queue, without using up an attempt.

        Returns:
            False if the shard has been requeued too often; the caller must then report that the task failed.
        """
        if task.requeues >= MAX_REQUEUES:
            return False
        self._first.insert(0, dataclasses.replace(task, requeues=task.requeues + 1))
        return True

    def prefer(self, shards: Collection[str]) -> None:
        """Hand out these failed shards next, so that other workers show whether the shards are to blame."""
        self._first += [task for task in self._last if task.shard.name in shards]
        self._last = [task for task in self._last if task.shard.name not in shards]

    def forgive(self, worker: str) -> None:
        """Give the waiting shards back the attempts that they have lost on a worker which was to blame."""
        self._first = [task.forgive(worker) for task in self._first]
        self._last = [task.forgive(worker) for task in self._last]
