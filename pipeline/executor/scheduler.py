"""Starts Ray actors around `LabelWorker`, gives them shards, watches them and replaces them.

One loop in the driver owns all state. Actors receive shards by name and URL, and answer with commit records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import RunFailed, WorkerLost
from pipeline.executor.actors import Actor, ActorGroup, update_nodes, update_progress
from pipeline.executor.attempts import Attempts
from pipeline.executor.cluster import ClusterWatch
from pipeline.executor.faults import cause_of, error_text, is_device_error, is_node_loss
from pipeline.executor.protocol import Recorder, RunState, ShardInFlight, WorkerReport
from pipeline.executor.readiness import ReadinessCheck
from pipeline.executor.shard_queue import ShardQueue
from pipeline.output.commit import Commit

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_START_FAILURES = 3
NODE_DEATH_SECONDS = 3.0
"""How long the head may take to notice that a node has died after the processes on it."""


class Loss(NamedTuple):
    """A lost actor of which it is not known yet whether its node is dead too."""

    actor: Actor
    error: RayError
    lost_at: float


class Scheduler:
    """Runs a queue of shards to its end on actors, and kills the actors when it is done, on errors and on Ctrl-C.

    Args:
        groups: One group of actors for each worker pool.
        queue: The shards to label.
        recorder: Gets the events of the run.
        watch: The watch over the cluster.
        readiness: The check that enough workers become ready.
        shard_timeout: Seconds that one attempt at a shard may take.
        start_timeout: Seconds that a worker may take to load its model once it has a place on a node.
    """

    def __init__(
        self,
        groups: Sequence[ActorGroup],
        queue: ShardQueue,
        recorder: Recorder,
        *,
        watch: ClusterWatch,
        readiness: ReadinessCheck,
        shard_timeout: float,
        start_timeout: float,
    ) -> None:
        self._groups = groups
        self._queue = queue
        self._recorder = recorder
        self._shard_timeout = shard_timeout
        self._start_timeout = start_timeout
        self._watch = watch
        self._readiness = readiness
        self._attempts = Attempts(queue, recorder)
        self._losses: list[Loss] = []
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
                self._attempts.assign(list(self._actors()))
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
                self._call_failed(actor, cause_of(error))
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
        else:
            self._attempts.succeeded(actor, answer)

    def _call_failed(self, actor: Actor, error: BaseException) -> None:
        """Handle an error that the worker raised; its process is alive."""
        if not actor.ready:
            actor.group.stop(actor)
            is_permanent = isinstance(error, ValueError)
            self._start_failed(actor, error, "no worker could load the model", is_permanent=is_permanent)
            return
        self._attempts.failed(actor, error)
        if is_device_error(error):
            actor.group.stop(actor)

    def _start_failed(self, actor: Actor, error: BaseException, message: str, *, is_permanent: bool = False) -> None:
        """Delay the next start. If no worker is ready, a permanent error or too many failures end the run."""
        actor.group.start_failed(error_text(error))
        is_exhausted = actor.group.start_failures >= MAX_START_FAILURES
        if (is_exhausted or is_permanent) and not any(other.ready for other in self._actors()):
            raise RunFailed(f"{message}: {error_text(error)}") from error
        self._attempts.start_failed(actor, error, list(self._actors()))

    def _actor_lost(self, actor: Actor, error: RayError) -> None:
        """Handle the loss of an actor: at once if its node is known to be dead, else when the head can know it."""
        actor.group.stop(actor)
        if is_node_loss(error) or self._is_leaving(actor.node):
            self._settle_loss(actor, error, is_node_dead=is_node_loss(error) or bool(actor.node))
        else:
            self._losses.append(Loss(actor, error, time.monotonic()))

    def _settle_losses(self) -> None:
        """Handle the losses of actors whose nodes the head has had time to miss."""
        for loss in list(self._losses):
            is_dead = self._is_leaving(loss.actor.node)
            if is_dead or self._watch.asked_at > loss.lost_at + NODE_DEATH_SECONDS:
                self._losses.remove(loss)
                self._settle_loss(loss.actor, loss.error, is_node_dead=is_dead)

    def _is_leaving(self, node: str) -> bool:
        """Return True if a node is dead or drains. A machine that shuts down ends Ray's workers before its raylet."""
        return node not in self._watch.nodes or node in self._watch.draining

    def _settle_loss(self, actor: Actor, error: RayError, *, is_node_dead: bool) -> None:
        """Requeue the shard of an actor whose node is dead; count a failed attempt if only its process is gone.

        A worker that was still pending on a dead node, or loading its model there, has not failed to start.
        """
        if is_node_dead and not actor.ready:
            log.info("a worker that was not ready yet is lost: its node is gone (%s)", error_text(error))
            self._readiness.place_lost()
        elif is_node_dead:
            self._attempts.requeue(actor, f"its node is gone ({error_text(error)})")
        elif not actor.ready:
            self._start_failed(actor, error, f"{MAX_START_FAILURES} workers in a row died while loading the model")
        else:
            log.warning("a worker was lost and is replaced: %s", error_text(error))
            self._attempts.failed(actor, WorkerLost(error_text(error)))

    def _check(self) -> None:
        """Check the cluster and the actors, and report the state of the run; called twice a second."""
        self._watch.check()
        self._attempts.check(list(self._actors()))
        for actor in update_nodes(self._actors()):
            self._attempts.joined(actor)
        self._settle_losses()
        self._enforce_timeouts()
        self._leave_nodes()
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
                self._attempts.failed(
                    actor, WorkerLost(f"not done within {self._shard_timeout:.0f} s; the worker was killed")
                )
                actor.group.stop(actor)
            elif not actor.ready and actor.scheduled_at is not None and now - actor.scheduled_at > self._start_timeout:
                actor.group.stop(actor)
                error = TimeoutError(f"the model was not loaded within {self._start_timeout:.0f} s")
                self._start_failed(actor, error, "no worker could load the model")

    def _leave_nodes(self) -> None:
        """Stop idle workers on nodes that drain or are set aside, and busy ones at the deadline of a draining node.

        None of them gets more shards.
        """
        for group in self._groups:
            group.avoid(self._attempts.set_aside)
        for actor in list(self._actors()):
            deadline = self._watch.draining.get(actor.node, 0.0 if actor.node in self._attempts.set_aside else None)
            if deadline is None:
                continue
            if not actor.draining and actor.node in self._watch.draining:
                log.warning("the node of worker %s is draining; it gets no more shards", actor.name or actor.node)
            actor.draining = True
            if actor.task is None:
                actor.group.stop(actor)
                self._readiness.place_lost()
            elif 0 < deadline < time.time():
                actor.group.stop(actor)
                self._attempts.requeue(actor, "the deadline of its draining node has passed")

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
