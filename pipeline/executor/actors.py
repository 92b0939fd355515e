"""The Ray actors of one worker pool: started and stopped to match the shards that are left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.executor.protocol import Job, Worker, WorkerProgress
from pipeline.executor.shard_queue import Place, Task
from pipeline.worker_pools import WorkerSpec

log = logging.getLogger(__name__)

NO_PROGRESS = WorkerProgress(samples=0, waiting="")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 600.0
"""Seconds before a worker is started again after a failed start; the pause doubles with each failure in a row."""


@dataclass(kw_only=True, eq=False)
class Actor:
    """One Ray actor with a worker in it.

    Attributes:
        group: The group that the actor belongs to.
        handle: Ray's handle of the actor.
        call: Reference to the result of the running call, `load` and then `label`; None between calls.
        call_started: Start of that call, in seconds of `time.monotonic`.
        node_answer: Reference to the id of the actor's node.
        node: Id of the actor's node; "" until the actor's process has started.
        scheduled_at: When the process was first seen to run, in seconds of `time.monotonic`; None before that.
        ready: True once the model is loaded.
        name: ``host:pid`` of a ready worker.
        draining: True if the node is draining, so that the actor gets no more shards.
        task: The task that the worker is labelling.
        progress_answer: Reference to the answer to the last question for progress; None if it has arrived.
        progress: The last answer.
    """

    group: ActorGroup
    handle: Any
    call: Any
    call_started: float
    node_answer: Any
    node: str = ""
    scheduled_at: float | None = None
    ready: bool = False
    name: str = ""
    draining: bool = False
    task: Task | None = None
    progress_answer: Any = None
    progress: WorkerProgress = NO_PROGRESS

    @property
    def place(self) -> Place:
        """Where the actor is."""
        return Place(self.node, self.handle._actor_id.hex())


class ActorGroup:
    """The actors of one worker pool. Ray's autoscaler adds nodes for actors that are pending.

    Attributes:
        spec: What each actor requests, and how many actors there may be.
        actors: The actors that have been started and not stopped.
        requested: How many actors there should be at present.
        start_failures: Number of failed starts in a row.
        avoided: Ids of nodes on which no actor is started.
    """

    def __init__(self, spec: WorkerSpec, job: Job, worker_class: Callable[[], Worker]) -> None:
        self.spec = spec
        self.actors: list[Actor] = []
        self.requested = 0
        self.start_failures = 0
        self.avoided: frozenset[str] = frozenset()
        self._job = job
        self._paused_until = 0.0
        self._class = ray.remote(worker_class)

    def __str__(self) -> str:
        ready = sum(actor.ready for actor in self.actors)
        return f"{ready} of {self.requested} ready, each requesting {self.spec}"

    def resize(self, waiting: int, unfinished: int, cluster: Mapping[str, float]) -> None:
        """Start or stop actors to match the waiting and the unfinished shards.

        There are never more loading or idle actors than waiting shards, so that nodes become free towards the end of a
        run.

        Args:
            waiting: Number of shards that no worker has.
            unfinished: Number of shards that are waiting or in flight.
            cluster: Resources of the cluster.
        """
        staying = [actor for actor in self.actors if not actor.draining]
        max_workers = self.spec.capacity(cluster) if self.spec.max_workers is None else self.spec.max_workers
        busy = sum(actor.task is not None for actor in staying)
        self.requested = max(min(self.spec.min_workers, unfinished), min(max_workers, busy + waiting))
        for _ in range(self.requested - len(staying)):
            if time.monotonic() < self._paused_until:
                return
            self._start()
        idle = [actor for actor in staying if actor.task is None]
        idle.sort(key=lambda actor: actor.ready)
        for actor in idle[: max(0, len(staying) - self.requested)]:
            self.stop(actor)

    def start_succeeded(self) -> None:
        """Record that a worker has loaded its model, which ends the pause after failed starts."""
        self.start_failures, self._paused_until = 0, 0.0

    def start_failed(self, text: str) -> None:
        """Record that a worker could not start, and delay the next start."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.start_failures)
        self.start_failures += 1
        self._paused_until = time.monotonic() + pause
        log.warning("a worker could not start, the next attempt is in %.0f s: %s", pause, text)

    def avoid(self, nodes: Collection[str]) -> None:
        """Start no more actors on these nodes. Actors that are still pending, and may get there, are started anew."""
        if self.avoided == frozenset(nodes):
            return
        self.avoided = frozenset(nodes)
        for actor in [actor for actor in self.actors if actor.scheduled_at is None]:
            self.stop(actor)

    def stop(self, actor: Actor) -> None:
        """Kill an actor. The caller decides what happens to its task."""
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def _start(self) -> None:
        # Two threads, so that an actor answers questions for its progress while it labels a shard.
        options = self.spec.ray_options(self.avoided)
        handle: Any = self._class.options(max_concurrency=2, max_restarts=0, **options).remote()
        # The job may hold credentials. As the argument of a method it goes straight from this process to the actor's;
        # an object in Ray's store may be spilled to a disk, and the head keeps the arguments of constructors.
        call = handle.load.remote(self._job)
        node_answer = handle.__ray_call__.remote(_own_node)
        self.actors.append(
            Actor(group=self, handle=handle, call=call, call_started=time.monotonic(), node_answer=node_answer)
        )


def _own_node(_: Worker) -> str:
    """Return the id of the node that this runs on; called in the actor."""
    return ray.get_runtime_context().get_node_id()


def update_nodes(actors: Iterable[Actor]) -> list[Actor]:
    """Set the node of every actor whose process has started since the last call, and return these actors."""
    started = []
    waiting = {actor.node_answer: actor for actor in actors if actor.scheduled_at is None}
    for actor, node in _arrived(waiting):
        if not isinstance(node, RayError):
            actor.node, actor.scheduled_at = node, time.monotonic()
            started.append(actor)
    return started


def update_progress(actors: Iterable[Actor]) -> list[tuple[Actor, RayError]]:
    """Set the progress of the ready actors from the answers that have arrived, and ask again.

    Returns:
        The actors that are lost, each with Ray's error.
    """
    waiting, lost = {}, []
    for actor in actors:
        if actor.ready:
            actor.progress_answer = actor.progress_answer or actor.handle.progress.remote()
            waiting[actor.progress_answer] = actor
    for actor, progress in _arrived(waiting):
        actor.progress_answer = None
        if isinstance(progress, RayError):
            lost.append((actor, progress))
        else:
            actor.progress = progress
    return lost


def _arrived(waiting: Mapping[Any, Actor]) -> Iterator[tuple[Actor, Any]]:
    """Yield the answers that have arrived; the answer of a lost actor is a RayError."""
    for ref in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []:
        try:
            answer = ray.get(ref)
        except RayError as error:
            answer = error
        yield waiting[ref], answer
