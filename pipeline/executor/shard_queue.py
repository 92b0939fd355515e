"""Which shards are still to do, and how often each was tried."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.readers.samples import Shard

MAX_ATTEMPTS = 3
MAX_GIVEN_BACK = 10
"""How often a shard may lose its worker through no fault of its own: it might be one after all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One attempt, from 1, at one shard. given_back: how often workers lost their nodes with it in hand."""

    shard: Shard
    attempt: int
    given_back: int = 0


class ShardQueue:
    """Hands out shards one by one; one that failed goes to the end of the line until its attempts are used up."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._pending = deque(Task(shard=shard, attempt=1) for shard in shards)
        self._unfinished = len(self._pending)

    @property
    def unfinished(self) -> int:
        """Shards that wait or are in hand."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Shards that are in nobody's hand."""
        return len(self._pending)

    def take(self) -> Task | None:
        """The next task, None while all that is left is in hand."""
        return self._pending.popleft() if self._pending else None

    def succeeded(self) -> None:
        """A task that was taken is done."""
        self._unfinished -= 1

    def failed(self, task: Task) -> bool:
        """A task that was taken failed; whether its shard will be tried again."""
        if task.attempt < MAX_ATTEMPTS:
            self._pending.append(dataclasses.replace(task, attempt=task.attempt + 1))
            return True
        self._unfinished -= 1
        return False

    def give_back(self, task: Task) -> bool:
        """A task that was taken lost its worker through no fault of its own: it is next in line, with no attempt used
        up; False where that has happened too often."""
        if task.given_back >= MAX_GIVEN_BACK:
            return False
        self._pending.appendleft(dataclasses.replace(task, given_back=task.given_back + 1))
        return True
