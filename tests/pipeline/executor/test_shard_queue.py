"""The order of the queue, and how often a shard is retried or requeued."""

from __future__ import annotations

from pipeline.executor.shard_queue import MAX_ATTEMPTS, MAX_FREE_FAILURES, MAX_REQUEUES, Place, ShardQueue
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


def tasks_of(queue: ShardQueue, place: Place, others: list[Place]) -> list[str]:
    return [task.shard.name for task in iter(lambda: queue.take(place, others), None)]


A, B, C = Place(node="a", worker="1"), Place(node="b", worker="2"), Place(node="a", worker="3")


def test_a_failed_shard_goes_to_another_node_else_to_another_worker_else_to_any() -> None:
    def failed_at_a() -> ShardQueue:
        queue = ShardQueue([Shard(name="x", url="", kind="tar")])
        task = queue.take(A, [A])
        assert task is not None
        queue.failed(task, A)
        return queue

    assert tasks_of(failed_at_a(), A, [A, B, C]) == []
    assert tasks_of(failed_at_a(), C, [A, B, C]) == [], "it is on the same node"
    assert tasks_of(failed_at_a(), B, [A, B, C]) == ["x"]
    assert tasks_of(failed_at_a(), A, [A, C]) == []
    assert tasks_of(failed_at_a(), C, [A, C]) == ["x"]
    assert tasks_of(failed_at_a(), A, [A]) == ["x"]


def test_a_failure_that_is_free_comes_next_elsewhere_and_costs_an_attempt_only_if_repeated() -> None:
    queue = ShardQueue([Shard(name=name, url="", kind="tar") for name in "xyz"])
    task = queue.take(A, [A, B])
    assert task is not None
    queue.failed(task, A, is_free=True)
    assert tasks_of(queue, A, [A, B]) == ["y", "z"]
    attempts = []
    while task := queue.take(B, [B]):
        attempts.append(task.attempt)
        queue.failed(task, B, is_free=True)
    assert attempts == [1] * MAX_FREE_FAILURES + [2, 3]
    assert queue.unfinished == 2


def test_a_worker_that_was_to_blame_gives_attempts_back() -> None:
    queue = ShardQueue([Shard(name="x", url="", kind="tar")])
    for place in (A, B):
        task = queue.take(place, [place])
        assert task is not None
        queue.failed(task, place)
    queue.forgive(A.worker)
    task = queue.take(B, [B])
    assert task is not None
    assert (task.attempt, task.charged) == (2, (B.worker,))
    assert task.forgive(B.worker).attempt == 1


def test_shards_that_may_show_who_is_to_blame_come_first() -> None:
    queue = ShardQueue([Shard(name=name, url="", kind="tar") for name in "xyz"])
    task = queue.take(A, [A, B])
    assert task is not None
    queue.failed(task, A)
    queue.prefer({"x"})
    assert tasks_of(queue, B, [A, B]) == ["x", "y", "z"]
