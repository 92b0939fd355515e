"""The Ray actors of one kind: how many there should be, started and dropped to fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.executor.protocol import Job, Worker, WorkerProgress
from pipeline.executor.shard_queue import Task
from pipeline.worker_pools import WorkerSpec

log = logging.getLogger(__name__)

NO_PROGRESS = WorkerProgress(samples=0, waiting="")

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 600.0
"""Seconds between two attempts at starting a worker; doubled from one failure to the next."""


@dataclass(kw_only=True, eq=False)
class Actor:
    """One actor. call: load, then label. since: when that call was made. placed: when its process was there."""

    group: ActorGroup
    handle: Any
    call: Any
    since: float
    asked_for_node: Any
    node: str = ""
    placed: float | None = None
    ready: bool = False
    name: str = ""  # host:pid, once it is ready
    leaving: bool = False  # its node is to go
    task: Task | None = None
    asked_for_progress: Any = None
    progress: WorkerProgress = NO_PROGRESS


class ActorGroup:
    """Actors alike. Pending ones are how Ray's autoscaler sees that nodes are wanted."""

    def __init__(self, pool: WorkerSpec, job: Job, worker_class: Callable[[], Worker]) -> None:
        self.pool = pool
        self.actors: list[Actor] = []
        self.wanted = 0
        self.start_failures = 0
        self._job = job
        self._pause_until = 0.0
        selector = {"label_selector": dict(pool.labels)} if pool.labels else {}
        # a second thread, so that progress can be asked for while a shard is labelled
        self._class = ray.remote(worker_class).options(
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            resources=dict(pool.resources) or None,
            max_concurrency=2,
            max_restarts=0,
            **selector,
        )

    def __str__(self) -> str:
        ready = sum(actor.ready for actor in self.actors)
        return f"{ready} of {self.wanted}, each of which asks for {self.pool}"

    def fit(self, waiting: int, unfinished: int, cluster: Mapping[str, float]) -> None:
        """Start what is missing and drop what is too much, for so many shards in nobody's hand, and in all.

        No more actors load or idle than shards wait, so that towards the end of a run nodes become free.
        """
        staying = [actor for actor in self.actors if not actor.leaving]
        most = self.pool.capacity(cluster) if self.pool.max_workers is None else self.pool.max_workers
        busy = sum(actor.task is not None for actor in staying)
        self.wanted = max(min(self.pool.min_workers, unfinished), min(most, busy + waiting))
        for _ in range(self.wanted - len(staying)):
            if time.monotonic() < self._pause_until:
                return
            self._start()
        idle = [actor for actor in staying if actor.task is None]
        idle.sort(key=lambda actor: actor.ready)
        for actor in idle[: max(0, len(staying) - self.wanted)]:
            self.drop(actor)

    def started(self) -> None:
        """A worker got ready."""
        self.start_failures, self._pause_until = 0, 0.0

    def start_failed(self, text: str) -> None:
        """A worker did not; the next one has to wait."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.start_failures)
        self.start_failures += 1
        self._pause_until = time.monotonic() + pause
        log.warning("a worker could not start, the next attempt is in %.0f s: %s", pause, text)

    def drop(self, actor: Actor) -> None:
        """Kill it; its task, if any, is the caller's to give to another."""
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def _start(self) -> None:
        handle: Any = self._class.remote()
        # The job may hold credentials. With a method's call it goes straight from this process to the actor's; an
        # object of its own may be spilled to a disk, and what a constructor gets is kept by the head.
        call = handle.load.remote(self._job)
        asked = handle.__ray_call__.remote(_node_of)
        self.actors.append(Actor(group=self, handle=handle, call=call, since=time.monotonic(), asked_for_node=asked))


def _node_of(_: Worker) -> str:
    return ray.get_runtime_context().get_node_id()


def ask_nodes(actors: Iterable[Actor]) -> None:
    """Note for each actor whose process is there by now on which node that is."""
    asked = {actor.asked_for_node: actor for actor in actors if actor.placed is None}
    for actor, node in _answers(asked):
        if not isinstance(node, RayError):
            actor.node, actor.placed = node, time.monotonic()


def ask_progress(actors: Iterable[Actor]) -> list[tuple[Actor, RayError]]:
    """Note how far those with a model are, by what has come back, and ask again. Those that are gone, and the error."""
    asked, gone = {}, []
    for actor in actors:
        if actor.ready:
            actor.asked_for_progress = actor.asked_for_progress or actor.handle.progress.remote()
            asked[actor.asked_for_progress] = actor
    for actor, progress in _answers(asked):
        actor.asked_for_progress = None
        if isinstance(progress, RayError):
            gone.append((actor, progress))
        else:
            actor.progress = progress
    return gone


def _answers(asked: Mapping[Any, Actor]) -> Iterator[tuple[Actor, Any]]:
    """What has come back by now; a RayError instead of the answer of an actor that is gone."""
    for ref in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []:
        try:
            answer = ray.get(ref)
        except RayError as error:
            answer = error
        yield asked[ref], answer
