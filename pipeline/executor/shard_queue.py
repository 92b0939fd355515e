"""The shards that are still to be labelled, and how often each has been tried."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.readers.samples import Shard

MAX_ATTEMPTS = 3
MAX_REQUEUES = 10
"""How often a shard may lose its worker without using up an attempt. Beyond that, the shard may be the cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One attempt at one shard.

    Attributes:
        shard: The shard.
        attempt: Number of the attempt, from 1.
        requeues: How often the shard was requeued because its worker's node was lost.
    """

    shard: Shard
    attempt: int
    requeues: int = 0


class ShardQueue:
    """A queue of shards. A shard that failed goes to the end, until its attempts are used up."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._pending = deque(Task(shard=shard, attempt=1) for shard in shards)
        self._unfinished = len(self._pending)

    @property
    def unfinished(self) -> int:
        """Number of shards that are waiting or in flight."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Number of shards that no worker has."""
        return len(self._pending)

    def take(self) -> Task | None:
        """Return the next task; None if no shard is waiting."""
        return self._pending.popleft() if self._pending else None

    def succeeded(self) -> None:
        """Record that a task is done."""
        self._unfinished -= 1

    def failed(self, task: Task) -> bool:
        """Record that a task failed. Returns True if its shard will be retried."""
        if task.attempt < MAX_ATTEMPTS:
            self._pending.append(dataclasses.replace(task, attempt=task.attempt + 1))
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
        self._pending.appendleft(dataclasses.replace(task, requeues=task.requeues + 1))
        return True
