"""The order of the queue, and how often a shard is retried or requeued."""

from __future__ import annotations

from pipeline.executor.shard_queue import MAX_ATTEMPTS, MAX_REQUEUES, ShardQueue
from pipeline.readers.samples import Shard


def test_every_shard_is_handed_out_once_in_order() -> None:
    shards = [Shard(name=str(i), url="", kind="tar") for i in range(3)]
    queue = ShardQueue(shards)
    assert queue.waiting == 3
    taken = [queue.take() for _ in range(4)]
    assert [task.shard if task else None for task in taken] == [*shards, None]
    assert (queue.unfinished, queue.waiting) == (3, 0)
    for _ in range(3):
        queue.succeeded()
    assert queue.unfinished == 0


def test_a_failing_shard_goes_to_the_end_and_fails_after_its_attempts() -> None:
    bad, good = (Shard(name=name, url="", kind="tar") for name in ("bad", "good"))
    queue = ShardQueue([bad, good])
    attempts = []
    while task := queue.take():
        attempts.append((task.shard.name, task.attempt))
        if task.shard is bad:
            assert queue.failed(task) == (task.attempt < MAX_ATTEMPTS)
        else:
            queue.succeeded()
    assert attempts == [("bad", 1), ("good", 1), ("bad", 2), ("bad", 3)]
    assert queue.unfinished == 0


def test_a_requeued_shard_is_next_and_keeps_its_attempts_up_to_a_limit() -> None:
    unlucky, other = (Shard(name=name, url="", kind="tar") for name in ("unlucky", "other"))
    queue = ShardQueue([unlucky, other])
    for times in range(MAX_REQUEUES + 1):
        task = queue.take()
        assert task is not None
        assert (task.shard, task.attempt) == (unlucky, 1)
        assert queue.requeue(task) == (times < MAX_REQUEUES)
    assert queue.failed(task), "beyond the limit it counts as an attempt"
    assert (queue.waiting, queue.unfinished) == (2, 2)
