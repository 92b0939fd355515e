"""Which shards are still to do, and how often each was tried."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.shards import Shard

MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One attempt, from 1, at one shard."""

    shard: Shard
    attempt: int


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
            self._pending.append(Task(shard=task.shard, attempt=task.attempt + 1))
            return True
        self._unfinished -= 1
        return False
