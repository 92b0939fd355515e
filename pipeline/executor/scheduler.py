"""Starts Ray actors around `LabelWorker`, gives them shards, watches them and replaces them.

One loop in the driver owns all state. Actors receive shards by name and URL, and answer with commit records.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from pipeline.errors import RunFailed, WorkerLost
from pipeline.executor.actors import Actor, ActorGroup, update_nodes, update_progress
from pipeline.executor.cluster import ClusterWatch
from pipeline.executor.protocol import Recorder, RunState, ShardInFlight, WorkerReport
from pipeline.executor.readiness import ReadinessCheck
from pipeline.executor.shard_queue import ShardQueue
from pipeline.output.commit import Commit

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_START_FAILURES = 3
DEVICE_ERRORS = ("CUDA", "HIP error", "MPS backend", "AcceleratorError", "OutOfMemoryError")
"""Words in errors after which the state of the device, and so the worker, cannot be trusted."""


class Scheduler:
    """Runs a queue of shards to its end on actors, and kills the actors when it is done, on errors and on Ctrl-C.

    Args:
        groups: One group of actors for each worker pool.
        queue: The shards to label.
        recorder: Gets the events of the run.
        watch: The watch over the cluster.
        shard_timeout: Seconds that one attempt at a shard may take.
        start_timeout: Seconds that a scheduled worker may take to load its model, and seconds with fewer ready workers
            than the minimum of a group, or none at all, after which the run fails.
    """

    def __init__(
        self,
        groups: Sequence[ActorGroup],
        queue: ShardQueue,
        recorder: Recorder,
        *,
        watch: ClusterWatch,
        shard_timeout: float,
        start_timeout: float,
    ) -> None:
        self._groups = groups
        self._queue = queue
        self._recorder = recorder
        self._shard_timeout = shard_timeout
        self._start_timeout = start_timeout
        self._watch = watch
        self._readiness = ReadinessCheck(groups, start_timeout, watch.describe)
        self._checked_at = 0.0

    def run(self) -> None:
        """Return when every shard is done or has failed.

        Raises:
            RunFailed: The run cannot continue. The recorder's errors are raised too.
        """
        try:
            for group in self._groups:
                # The class of an actor goes to the head with its first instance. Other calls do not wait for the head.
                self._watch.call(partial(self._resize, group))
            while self._queue.unfinished:
                for group in self._groups:
                    self._resize(group)
                self._assign()
                self._collect()
                if time.monotonic() - self._checked_at >= POLL_SECONDS:
                    self._checked_at = time.monotonic()
                    self._check()
        finally:
            for actor in list(self._actors()):
                actor.group.stop(actor)

    def _resize(self, group: ActorGroup) -> None:
        group.resize(self._queue.waiting, self._queue.unfinished, self._watch.resources)

    def _actors(self) -> Iterator[Actor]:
        for group in self._groups:
            yield from group.actors

    def _assign(self) -> None:
        """Give a waiting shard to every free actor."""
        for actor in self._actors():
            is_free = actor.ready and not actor.draining and actor.task is None
            if is_free and (task := self._queue.take()):
                actor.task, actor.call_started = task, time.monotonic()
                actor.progress = dataclasses.replace(actor.progress, samples=0, waiting="")
                actor.call = actor.handle.label.remote(task.shard, task.attempt)

    def _collect(self) -> None:
        """Handle the calls that have ended; wait for one for at most `POLL_SECONDS`."""
        calls = {actor.call: actor for actor in self._actors() if actor.call is not None}
        if not calls:
            time.sleep(POLL_SECONDS)
            return
        done, rest = ray.wait(list(calls), num_returns=1, timeout=POLL_SECONDS)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in done:
            actor = calls[ref]
            actor.call = None
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                self._call_failed(actor, _cause(error))
            except RayError as error:  # the process or its node died, or the process was killed for its memory
                self._actor_lost(actor, error)
            else:
                self._call_succeeded(actor, answer)

    def _call_succeeded(self, actor: Actor, answer: WorkerReport | Commit) -> None:
        if isinstance(answer, WorkerReport):
            self._recorder.worker_ready(answer)
            actor.group.start_succeeded()
            actor.ready, actor.name = True, f"{answer.host}:{answer.pid}"
            actor.progress_answer = actor.handle.progress.remote()
            return
        actor.task = None
        self._queue.succeeded()
        self._recorder.shard_committed(answer)

    def _call_failed(self, actor: Actor, error: BaseException) -> None:
        """Handle an error that the worker raised; its process is alive."""
        if not actor.ready:
            actor.group.stop(actor)
            is_permanent = isinstance(error, ValueError)
            self._start_failed(actor, error, "no worker could load the model", is_permanent=is_permanent)
            return
        self._attempt_failed(actor, error)
        if any(word in _text(error) for word in DEVICE_ERRORS):
            actor.group.stop(actor)

    def _start_failed(self, actor: Actor, error: BaseException, message: str, *, is_permanent: bool = False) -> None:
        """Delay the next start. If no worker is ready, a permanent error or too many failures end the run."""
        actor.group.start_failed(_text(error))
        is_exhausted = actor.group.start_failures >= MAX_START_FAILURES
        if (is_exhausted or is_permanent) and not any(other.ready for other in self._actors()):
            raise RunFailed(f"{message}: {_text(error)}") from error

    def _actor_lost(self, actor: Actor, error: RayError) -> None:
        """Requeue the shard of an actor whose node is gone; count a failed attempt if only its process is gone."""
        actor.group.stop(actor)
        # The head knows whether the node is alive. Ray raises ActorUnavailableError if it does not hear from a node.
        is_node_gone = isinstance(error, ActorUnavailableError) or not self._watch.is_alive(actor.node)
        if not actor.ready:
            if not is_node_gone or not actor.node:
                self._start_failed(actor, error, f"{MAX_START_FAILURES} workers in a row died while loading the model")
        elif is_node_gone:
            self._requeue(actor, f"its node is gone ({_text(error)})")
        else:
            log.warning("a worker was lost and is replaced: %s", _text(error))
            self._attempt_failed(actor, WorkerLost(_text(error)))

    def _requeue(self, actor: Actor, reason: str) -> None:
        """Give the shard in flight to another worker. It uses up an attempt only if that happens again and again."""
        task, actor.task = actor.task, None
        log.warning("a worker was lost and is replaced: %s", reason)
        if task is not None and not self._queue.requeue(task):
            self._recorder.attempt_failed(task, WorkerLost(reason), will_retry=self._queue.failed(task))

    def _attempt_failed(self, actor: Actor, error: BaseException) -> None:
        task, actor.task = actor.task, None
        if task is not None:
            self._recorder.attempt_failed(task, error, will_retry=self._queue.failed(task))

    def _check(self) -> None:
        """Check the cluster and the actors, and report the state of the run; called twice a second."""
        self._watch.check()
        update_nodes(self._actors())
        self._enforce_timeouts()
        self._leave_draining_nodes()
        self._readiness.check(self._queue.unfinished)
        for actor, error in update_progress(self._actors()):
            # The loss of an actor with a shard shows in the answer to that call. An idle one must not get a shard.
            if actor.task is None:
                self._actor_lost(actor, error)
        self._recorder.update(self._state())

    def _enforce_timeouts(self) -> None:
        now = time.monotonic()
        for actor in list(self._actors()):
            if actor.task is not None and now - actor.call_started > self._shard_timeout:
                actor.group.stop(actor)
                limit = f"{self._shard_timeout:.0f} s"
                self._attempt_failed(actor, WorkerLost(f"not done within {limit}; the worker was killed"))
            elif not actor.ready and actor.scheduled_at is not None and now - actor.scheduled_at > self._start_timeout:
                actor.group.stop(actor)
                error = TimeoutError(f"the model was not loaded within {self._start_timeout:.0f} s")
                self._start_failed(actor, error, "no worker could load the model")

    def _leave_draining_nodes(self) -> None:
        """Stop idle workers on draining nodes, and busy ones at the node's deadline. None of them gets more shards."""
        for actor in list(self._actors()):
            deadline = self._watch.draining.get(actor.node)
            if deadline is None:
                continue
            if not actor.draining:
                log.warning("the node of worker %s is draining; it gets no more shards", actor.name or actor.node)
            actor.draining = True
            if actor.task is None:
                actor.group.stop(actor)
            elif 0 < deadline < time.time():
                actor.group.stop(actor)
                self._requeue(actor, "the deadline of its draining node has passed")

    def _state(self) -> RunState:
        ready = [actor for actor in self._actors() if actor.ready]
        in_flight = [
            ShardInFlight(
                shard=actor.task.shard.name,
                attempt=actor.task.attempt,
                since=actor.call_started,
                worker=actor.name,
                progress=actor.progress,
            )
            for actor in ready
            if actor.task
        ]
        requested = sum(group.requested for group in self._groups)
        return RunState(ready=len(ready), requested=requested, waiting=self._queue.waiting, in_flight=in_flight)


def _cause(error: RayTaskError) -> BaseException:
    """Return the error that the worker raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _text(error: BaseException) -> str:
    """Return the type of an error and its message, of Ray's own errors only the first line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first if isinstance(error, RayError) else error}"
