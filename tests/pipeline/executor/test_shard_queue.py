from __future__ import annotations

from pipeline.executor.shard_queue import MAX_ATTEMPTS, MAX_GIVEN_BACK, ShardQueue
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


def test_a_failing_shard_goes_to_the_end_and_is_given_up_after_its_attempts() -> None:
    bad, good = (Shard(name=name, url="", kind="tar") for name in ("bad", "good"))
    queue = ShardQueue([bad, good])
    seen = []
    while task := queue.take():
        seen.append((task.shard.name, task.attempt))
        if task.shard is bad:
            assert queue.failed(task) == (task.attempt < MAX_ATTEMPTS)
        else:
            queue.succeeded()
    assert seen == [("bad", 1), ("good", 1), ("bad", 2), ("bad", 3)]
    assert queue.unfinished == 0


def test_a_shard_that_is_given_back_is_next_and_keeps_its_attempts_within_bounds() -> None:
    unlucky, other = (Shard(name=name, url="", kind="tar") for name in ("unlucky", "other"))
    queue = ShardQueue([unlucky, other])
    for times in range(MAX_GIVEN_BACK + 1):
        task = queue.take()
        assert task is not None
        assert (task.shard, task.attempt) == (unlucky, 1)
        assert queue.give_back(task) == (times < MAX_GIVEN_BACK)
    assert queue.failed(task), "from then on it counts as an attempt"
    assert (queue.waiting, queue.unfinished) == (2, 2)
