"""Ray actors around LabelWorker: started, fed, watched, replaced.

One loop in the driver owns all state; actors are sent shards by name and URL and answer with commit records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.commit import Commit
from pipeline.poolstate import InHand, PoolState
from pipeline.queue import ShardQueue, Task
from pipeline.settings import RunFailed, WorkerLost
from pipeline.worker import Job, Worker, WorkerProgress, WorkerReport

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_START_FAILURES = 3
_NO_PROGRESS = WorkerProgress(samples=0, waiting="")
DEVICE_ERRORS = ("CUDA", "HIP error", "MPS backend", "AcceleratorError", "OutOfMemoryError")


class Observer(Protocol):
    """What the pool tells the run."""

    def ready(self, report: WorkerReport) -> None:
        """A worker has its model loaded. Raises where it does not belong to this run."""

    def committed(self, commit: Commit) -> None:
        """A shard is done."""

    def attempt_failed(self, task: Task, error: BaseException, *, again: bool) -> None:
        """An attempt failed; the shard is tried again, or has failed for good. Raises where the run cannot go on."""

    def working(self, state: PoolState) -> None:
        """Every POLL_SECONDS."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How many actors, what each asks Ray for, and how long to wait.

    cpus, gpus: of Ray's resources for each actor; gpus may be a fraction. shard_timeout: seconds for one attempt at a
    shard. start_timeout: seconds without any live worker until the run fails.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    shard_timeout: float = 7200.0
    start_timeout: float = 600.0


@dataclass(kw_only=True, eq=False)
class _Actor:
    handle: Any
    ref: Any  # of the call under way: load, then label
    since: float
    task: Task | None = None
    ready: bool = False
    name: str = ""  # host:pid, once it is ready
    asked: Any = None  # the progress call under way
    progress: WorkerProgress = _NO_PROGRESS


class ActorPool:
    """Runs a queue to its end on actors; kills them when done, on errors and on Ctrl-C."""

    def __init__(
        self,
        job: Job,
        settings: PoolSettings,
        queue: ShardQueue,
        observer: Observer,
        worker_class: Callable[[], Worker],
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._observer = observer
        # a second thread, so that progress can be asked for while a shard is labelled
        self._actor_class = ray.remote(worker_class).options(
            num_cpus=settings.cpus, num_gpus=settings.gpus, max_concurrency=2, max_restarts=0
        )
        self._job = job
        self._actors: list[_Actor] = []
        self._start_failures = 0
        self._target = settings.workers
        self._alive_at = time.monotonic()
        self._asked_at = 0.0

    def run(self) -> None:
        """Until every shard is done or has failed. Raises RunFailed, and whatever the observer raises."""
        try:
            while self._queue.unfinished:
                self._start_missing()
                self._hand_out()
                self._collect()
                if time.monotonic() - self._asked_at >= POLL_SECONDS:
                    self._asked_at = time.monotonic()
                    self._enforce_deadlines()
                    self._ask_progress()
        finally:
            for actor in list(self._actors):
                self._drop(actor)

    def _start_missing(self) -> None:
        while len(self._actors) < min(self._target, self._queue.unfinished):
            handle: Any = self._actor_class.remote()
            # The job may hold credentials. With a method's call it goes straight from this process to the actor's; an
            # object of its own may be spilled to a disk, and what a constructor gets is kept by the head.
            self._actors.append(_Actor(handle=handle, ref=handle.load.remote(self._job), since=time.monotonic()))

    def _hand_out(self) -> None:
        for actor in self._actors:
            if actor.ready and actor.task is None and (task := self._queue.take()):
                actor.task, actor.since = task, time.monotonic()
                actor.progress = _NO_PROGRESS
                actor.ref = actor.handle.label.remote(task.shard, task.attempt)

    def _collect(self) -> None:
        busy = {actor.ref: actor for actor in self._actors if actor.ref is not None}
        if not busy:
            time.sleep(POLL_SECONDS)
            return
        done, rest = ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in done:
            actor = busy[ref]
            if actor not in self._actors:
                continue  # dropped on account of another answer
            actor.ref = None
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                self._call_failed(actor, _cause(error))
            except RayError as error:  # the process, its node or its memory is gone
                self._actor_lost(actor, f"{type(error).__name__}: {_first_line(error)}")
            else:
                self._answered(actor, answer)

    def _answered(self, actor: _Actor, answer: WorkerReport | Commit) -> None:
        if isinstance(answer, WorkerReport):
            self._observer.ready(answer)
            actor.ready, self._start_failures = True, 0
            actor.name = f"{answer.host}:{answer.pid}"
            return
        actor.task = None
        self._queue.succeeded()
        self._observer.committed(answer)

    def _call_failed(self, actor: _Actor, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        if not actor.ready:
            self._drop(actor)
            if not self._actors:
                raise RunFailed(f"no worker could load the model: {text}") from error
            self._target -= 1
            log.warning("one worker fewer, as it could not load the model: %s", text)
            return
        self._attempt_failed(actor, error)
        if any(sign in text for sign in DEVICE_ERRORS):  # the device's state cannot be trusted any more
            self._drop(actor)

    def _actor_lost(self, actor: _Actor, text: str) -> None:
        self._drop(actor)
        if actor.ready:
            log.warning("a worker was lost and is replaced: %s", text)
            self._attempt_failed(actor, WorkerLost(text))
            return
        self._start_failures += 1
        if self._start_failures >= MAX_START_FAILURES and not any(other.ready for other in self._actors):
            raise RunFailed(f"{MAX_START_FAILURES} workers in a row died while loading the model: {text}")

    def _attempt_failed(self, actor: _Actor, error: BaseException) -> None:
        task, actor.task = actor.task, None
        if task is not None:
            self._observer.attempt_failed(task, error, again=self._queue.failed(task))

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for actor in list(self._actors):
            if actor.task is not None and now - actor.since > self._settings.shard_timeout:
                self._drop(actor)
                limit = self._settings.shard_timeout
                self._attempt_failed(actor, WorkerLost(f"not done within {limit:.0f} s; the worker was killed"))
        if any(actor.ready for actor in self._actors):
            self._alive_at = now
        elif now - self._alive_at > self._settings.start_timeout:
            limit = self._settings.start_timeout
            raise RunFailed(f"no worker became ready within {limit:.0f} s. {resources_message(self._settings)}")

    def _ask_progress(self) -> None:
        ready = [actor for actor in self._actors if actor.ready]
        for actor in ready:
            if actor.asked is None:
                actor.asked = actor.handle.progress.remote()
        asked = {actor.asked: actor for actor in ready}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for ref in answered:
            actor = asked[ref]
            actor.asked = None
            try:
                actor.progress = ray.get(ref)
            except RayError as error:
                # The death of one with a shard shows in the answer to that; an idle one must not be given another.
                if actor.task is None:
                    self._actor_lost(actor, f"{type(error).__name__}: {_first_line(error)}")
        self._observer.working(self._state())

    def _state(self) -> PoolState:
        ready = [actor for actor in self._actors if actor.ready]
        in_hand = [
            InHand(
                shard=actor.task.shard.name,
                attempt=actor.task.attempt,
                since=actor.since,
                worker=actor.name,
                progress=actor.progress,
            )
            for actor in ready
            if actor.task
        ]
        return PoolState(ready=len(ready), asked=self._target, waiting=self._queue.waiting, in_hand=in_hand)

    def _drop(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        ray.kill(actor.handle)


def resources_message(settings: PoolSettings) -> str:
    """What each actor asks Ray for, what the cluster has and what of it is free, in a sentence."""

    def shown(resources: dict[str, float]) -> str:
        return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"

    return (
        f"Each worker asks for {settings.cpus:g} CPU, {settings.gpus:g} GPU; the cluster has "
        f"{shown(ray.cluster_resources())}, of which free are {shown(ray.available_resources())}"
    )


def _cause(error: RayTaskError) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
