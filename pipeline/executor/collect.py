"""Does tasks, such as one for each label shard, in this process or in Ray actors that keep what they have loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from pipeline.settings import RunSettings

Job = TypeVar("Job")
Task = TypeVar("Task")
TaskOfWorker = TypeVar("TaskOfWorker", contravariant=True)

MOST_DEATHS = 3
"""How many times an actor that dies is started again, and how many times its task is repeated."""


class Collector(Protocol[TaskOfWorker]):
    """A worker, which writes its results itself. Doing a task again writes the same results."""

    def collect(self, task: TaskOfWorker) -> str:
        """Do a task, and return its name, such as that of its label shard."""
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
    """Do all tasks, and yield the name of each finished one, in any order.

    Args:
        worker: Class of the workers, which the actors import.
        job: Argument of each worker.
        tasks: The tasks.
        run: Ray cluster, or none.
        workers: Number of Ray actors.
        threads: CPU threads of each actor.
        gpus: Ray GPUs of each actor.
    """
    if not tasks:
        return
    if run.no_ray:
        yield from map(worker(job).collect, tasks)
        return
    import ray
    from ray.util import ActorPool

    from pipeline.executor.connection import connected

    with connected(run, ()):
        # Ray restarts an actor that dies, and repeats its task.
        remote = ray.remote(worker).options(
            num_cpus=threads, num_gpus=gpus, max_restarts=MOST_DEATHS, max_task_retries=MOST_DEATHS
        )
        pool = ActorPool([remote.remote(job) for _ in range(min(workers, len(tasks)))])
        yield from pool.map_unordered(lambda actor, task: actor.collect.remote(task), list(tasks))
