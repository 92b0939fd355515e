"""Does the work on each of many label shards, in this process or in Ray actors that each keep what they have loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from pipeline.settings import RunSettings

Job = TypeVar("Job")
Task = TypeVar("Task")
TaskOfWorker = TypeVar("TaskOfWorker", contravariant=True)

MOST_DEATHS = 3
"""How many times an actor that dies is started again, and its task repeated."""


class Collector(Protocol[TaskOfWorker]):
    """A worker. It writes what it makes of a task itself, so that doing a task again is harmless."""

    def collect(self, task: TaskOfWorker) -> str:
        """Do a task, and return the name of its label shard."""
        ...


def collect(
    worker: Callable[[Job], Collector[Task]],
    job: Job,
    tasks: Sequence[Task],
    *,
    run: RunSettings,
    workers: int = 1,
    threads: int = 1,
    gpus: float = 0.0,
) -> Iterator[str]:
    """Do all tasks, and yield the name of the label shard of each one that is finished, in any order.

    Args:
        worker: Class of the workers, which the actors import.
        job: Argument of each worker.
        tasks: What is to be done.
        run: Ray cluster, or none.
        workers: Number of Ray actors.
        threads: CPU threads of each actor.
        gpus: Ray GPUs of each actor.
    """
    if run.no_ray or not tasks:
        local = worker(job) if tasks else None
        yield from (local.collect(task) for task in tasks if local is not None)
        return
    import ray
    from ray.util import ActorPool

    from pipeline.executor.connection import connected

    with connected(run, ()):
        # Ray restarts an actor that dies, and repeats the task that it was doing
        remote = ray.remote(worker).options(
            num_cpus=threads, num_gpus=gpus, max_restarts=MOST_DEATHS, max_task_retries=MOST_DEATHS
        )
        pool = ActorPool([remote.remote(job) for _ in range(min(workers, len(tasks)))])
        yield from pool.map_unordered(lambda actor, task: actor.collect.remote(task), list(tasks))
