"""Ray actors around LabelWorker: started, fed, watched, replaced.

One loop in the driver owns all state; actors are sent shards by name and URL and answer with commit records.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from pipeline.errors import RunFailed, WorkerLost
from pipeline.executor.actors import Actor, ActorGroup, ask_nodes, ask_progress
from pipeline.executor.cluster import ClusterWatch, cluster_in_words
from pipeline.executor.protocol import InHand, Observer, PoolState, WorkerReport
from pipeline.executor.shard_queue import ShardQueue
from pipeline.output.commit import Commit

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_START_FAILURES = 3
HEAD_SECONDS = 40.0
"""How long the cluster's head may be silent: Ray itself ends a driver after 60, and says nothing of what to do."""
PLACE_SECONDS = 30.0
"""Without any worker's process until people are told what is waited for: an autoscaler may well be at work."""
DEVICE_ERRORS = ("CUDA", "HIP error", "MPS backend", "AcceleratorError", "OutOfMemoryError")


class ActorPool:
    """Runs a queue to its end on actors; kills them when done, on errors and on Ctrl-C.

    shard_timeout: seconds for one attempt at a shard. start_timeout: seconds for a worker that has a place to load its
    model; and seconds with fewer workers than `least` of a group, or none at all, until the run fails.
    """

    def __init__(
        self,
        groups: Sequence[ActorGroup],
        queue: ShardQueue,
        observer: Observer,
        *,
        shard_timeout: float,
        start_timeout: float,
    ) -> None:
        self._groups = groups
        self._queue = queue
        self._observer = observer
        self._shard_timeout = shard_timeout
        self._start_timeout = start_timeout
        self._watch = ClusterWatch()
        self._began = self._enough_at = time.monotonic()
        self._told = False
        self._looked_at = 0.0

    def run(self) -> None:
        """Until every shard is done or has failed. Raises RunFailed, and whatever the observer raises."""
        try:
            while self._queue.unfinished:
                for group in self._groups:
                    group.fit(self._queue.waiting, self._queue.unfinished, self._watch.resources)
                self._hand_out()
                self._collect()
                if time.monotonic() - self._looked_at >= POLL_SECONDS:
                    self._looked_at = time.monotonic()
                    self._look()
        finally:
            self._watch.close()
            for actor in list(self._actors()):
                actor.group.drop(actor)

    def _actors(self) -> Iterator[Actor]:
        for group in self._groups:
            yield from group.actors

    def _hand_out(self) -> None:
        for actor in self._actors():
            free = actor.ready and not actor.leaving and actor.task is None
            if free and (task := self._queue.take()):
                actor.task, actor.since = task, time.monotonic()
                actor.progress = dataclasses.replace(actor.progress, samples=0, waiting="")
                actor.call = actor.handle.label.remote(task.shard, task.attempt)

    def _collect(self) -> None:
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
            except RayError as error:  # the process, its node or its memory is gone
                self._lost(actor, error)
            else:
                self._answered(actor, answer)

    def _answered(self, actor: Actor, answer: WorkerReport | Commit) -> None:
        if isinstance(answer, WorkerReport):
            self._observer.ready(answer)
            actor.group.started()
            actor.ready, actor.name = True, f"{answer.host}:{answer.pid}"
            actor.asked_for_progress = actor.handle.progress.remote()
            return
        actor.task = None
        self._queue.succeeded()
        self._observer.committed(answer)

    def _call_failed(self, actor: Actor, error: BaseException) -> None:
        if not actor.ready:
            actor.group.drop(actor)
            self._start_failed(actor, error, "no worker could load the model", for_good=isinstance(error, ValueError))
            return
        self._attempt_failed(actor, error)
        if any(sign in _text(error) for sign in DEVICE_ERRORS):  # the device's state cannot be trusted any more
            actor.group.drop(actor)

    def _start_failed(self, actor: Actor, error: BaseException, said: str, *, for_good: bool = False) -> None:
        actor.group.start_failed(_text(error))
        tried = actor.group.start_failures >= MAX_START_FAILURES
        if (tried or for_good) and not any(other.ready for other in self._actors()):
            raise RunFailed(f"{said}: {_text(error)}") from error

    def _lost(self, actor: Actor, error: RayError) -> None:
        actor.group.drop(actor)
        # Where a process alone is gone, its node says so. Ray calls unavailable what it has heard nothing of.
        node_gone = isinstance(error, ActorUnavailableError) or not self._watch.is_alive(actor.node)
        if not actor.ready:
            if not node_gone or not actor.node:
                self._start_failed(actor, error, f"{MAX_START_FAILURES} workers in a row died while loading the model")
        elif node_gone:
            self._give_back(actor, f"its node is gone ({_text(error)})")
        else:
            log.warning("a worker was lost and is replaced: %s", _text(error))
            self._attempt_failed(actor, WorkerLost(_text(error)))

    def _give_back(self, actor: Actor, reason: str) -> None:
        """The shard in hand to another worker; that counts as an attempt only where it happens again and again."""
        task, actor.task = actor.task, None
        log.warning("a worker was lost and is replaced: %s", reason)
        if task is not None and not self._queue.give_back(task):
            self._observer.attempt_failed(task, WorkerLost(reason), again=self._queue.failed(task))

    def _attempt_failed(self, actor: Actor, error: BaseException) -> None:
        task, actor.task = actor.task, None
        if task is not None:
            self._observer.attempt_failed(task, error, again=self._queue.failed(task))

    def _look(self) -> None:
        if self._watch.silence > HEAD_SECONDS:
            raise RunFailed(
                f"the head of the Ray cluster has not answered for {HEAD_SECONDS:.0f} s; what is labelled is safe, "
                "and the same command goes on where this run stopped, on this cluster or another"
            )
        ask_nodes(self._actors())
        self._enforce_deadlines()
        self._leave_draining_nodes()
        self._check_enough()
        for actor, error in ask_progress(self._actors()):
            # The death of one with a shard shows in the answer to that; an idle one must not be given another.
            if actor.task is None:
                self._lost(actor, error)
        self._observer.working(self._state())

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for actor in list(self._actors()):
            if actor.task is not None and now - actor.since > self._shard_timeout:
                actor.group.drop(actor)
                limit = f"{self._shard_timeout:.0f} s"
                self._attempt_failed(actor, WorkerLost(f"not done within {limit}; the worker was killed"))
            elif not actor.ready and actor.placed is not None and now - actor.placed > self._start_timeout:
                actor.group.drop(actor)
                late = TimeoutError(f"the model was not loaded within {self._start_timeout:.0f} s")
                self._start_failed(actor, late, "no worker could load the model")

    def _leave_draining_nodes(self) -> None:
        """Workers on a node that is to go finish what they have, as long as there is time, and get no more."""
        for actor in list(self._actors()):
            deadline = self._watch.draining.get(actor.node)
            if deadline is None:
                continue
            if not actor.leaving:
                log.warning("the node of worker %s is to go; it gets no more shards", actor.name or actor.node)
            actor.leaving = True
            if actor.task is None:
                actor.group.drop(actor)
            elif 0 < deadline < time.time():
                actor.group.drop(actor)
                self._give_back(actor, "its node was to go by now")

    def _check_enough(self) -> None:
        now = time.monotonic()
        for group in self._groups:
            ready = sum(actor.ready for actor in group.actors)
            if ready < min(group.pool.min_workers, self._queue.unfinished):
                break
        else:
            if any(actor.ready for actor in self._actors()):
                self._enough_at = now
        asked = "; ".join(map(str, self._groups))
        if not self._told and now - self._began > PLACE_SECONDS:
            self._told = True
            if all(actor.placed is None for actor in self._actors()):
                log.warning("no worker has a place yet: ready are %s. %s", asked, cluster_in_words())
        if now - self._enough_at > self._start_timeout:
            raise RunFailed(
                f"too few workers became ready within {self._start_timeout:.0f} s: {asked}. {cluster_in_words()}"
            )

    def _state(self) -> PoolState:
        ready = [actor for actor in self._actors() if actor.ready]
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
        asked = sum(group.wanted for group in self._groups)
        return PoolState(ready=len(ready), asked=asked, waiting=self._queue.waiting, in_hand=in_hand)


def _cause(error: RayTaskError) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _text(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first if isinstance(error, RayError) else error}"
