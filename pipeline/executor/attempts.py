"""Hands shards to workers, and decides who is to blame when an attempt fails: the shard, its worker or its node."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

from pipeline.errors import RunFailed, WorkerLost
from pipeline.executor.actors import Actor
from pipeline.executor.faults import error_text, every_worker_fails, is_environmental
from pipeline.executor.health import Health
from pipeline.executor.protocol import Recorder
from pipeline.executor.shard_queue import ShardQueue
from pipeline.output.commit import Commit
from pipeline.storage import redact

log = logging.getLogger(__name__)


class Attempts:
    """The attempts at the shards of a run.

    Args:
        queue: The shards.
        recorder: Gets what becomes of them.
    """

    def __init__(self, queue: ShardQueue, recorder: Recorder) -> None:
        self._queue = queue
        self._recorder = recorder
        self._health = Health()

    @property
    def set_aside(self) -> dict[str, str]:
        """Why each node that gets no more workers was set aside, by its id."""
        return self._health.set_aside

    def assign(self, actors: Sequence[Actor]) -> None:
        """Give a waiting shard to every free actor that may get one."""
        open_places = [actor.place for actor in actors if self._is_open(actor)]
        for actor in actors:
            is_free = actor.ready and actor.node and not actor.draining and actor.task is None
            if not is_free or not self._health.may_work(actor.place):
                continue
            if task := self._queue.take(actor.place, open_places):
                actor.task, actor.call_started = task, time.monotonic()
                actor.progress = dataclasses.replace(actor.progress, samples=0, waiting="")
                actor.call = actor.handle.label.remote(task.shard, task.attempt)

    def succeeded(self, actor: Actor, commit: Commit) -> None:
        """Record that an actor has committed its shard."""
        actor.task = None
        self._health.succeeded(actor.place, commit.shard)
        self._queue.succeeded()
        self._recorder.shard_committed(commit)

    def failed(self, actor: Actor, error: BaseException) -> None:
        """Record that the attempt of an actor failed."""
        task, actor.task = actor.task, None
        if task is None:
            return
        is_free = is_environmental(error, task.shard)
        text = redact(error_text(error))
        self._health.failed(actor.place, task.shard.name, text, is_environmental=is_free)
        will_retry = self._queue.failed(task, actor.place, is_free=is_free)
        if not will_retry:
            self._health.gave_up(task.shard.name)
        self._recorder.attempt_failed(task, error, will_retry=will_retry)

    def requeue(self, actor: Actor, reason: str) -> None:
        """Give the shard in flight to another worker. It uses up an attempt only if that happens again and again."""
        task, actor.task = actor.task, None
        log.warning("a worker was lost and is replaced: %s", reason)
        if task is not None and not self._queue.requeue(task):
            self._recorder.attempt_failed(task, WorkerLost(reason), will_retry=self._queue.failed(task))

    def joined(self, actor: Actor) -> None:
        """Record that the node of an actor is known."""
        self._health.joined(actor.place)

    def start_failed(self, actor: Actor, error: BaseException, actors: Sequence[Actor]) -> None:
        """Record that an actor could not load the model; its node is set aside if only other nodes can."""
        is_elsewhere = any(other.ready and other.node != actor.node for other in actors)
        if actor.node and is_elsewhere and self._health.start_failed(actor.node, redact(error_text(error))):
            self._set_aside(actor.node, actor.node)

    def check(self, actors: Sequence[Actor]) -> None:
        """Replace the actors that are to blame, and set their nodes aside; called with all actors, twice a second.

        Raises:
            RunFailed: Whatever the workers try fails, and replacing them has not helped.
        """
        by_place = {actor.place: actor for actor in actors}
        self._health.keep(by_place)
        for place, reason in self._health.blame():
            if place in by_place:
                self._replace(by_place.pop(place), reason, list(by_place.values()))
        self._queue.prefer(self._health.doubtful_shards())
        at_work = [actor for actor in by_place.values() if actor.scheduled_at is not None and not actor.draining]
        if at_work and all(self._health.is_stuck(actor.place) and actor.task is None for actor in at_work):
            self._resolve(at_work)

    def _is_open(self, actor: Actor) -> bool:
        """Return True if an actor can take shards now, or will once its model is loaded or its shard is done."""
        is_leaving = actor.draining or actor.node in self.set_aside
        return bool(actor.node) and not is_leaving and not self._health.is_stuck(actor.place)

    def _replace(self, actor: Actor, reason: str, others: Sequence[Actor]) -> None:
        """Replace a worker that is to blame, and give back the attempts that shards have lost on it."""
        self._queue.forgive(actor.place.worker)
        for other in others:
            other.task = other.task and other.task.forgive(actor.place.worker)
        log.warning("worker %s is replaced: %s", actor.name, reason)
        actor.group.stop(actor)
        if actor.node in self.set_aside:
            self._set_aside(actor.node, f"{actor.name.partition(':')[0]} ({actor.node})")

    def _set_aside(self, node: str, name: str) -> None:
        log.warning("node %s is set aside for the rest of the run: %s", name, self.set_aside[node])
        self._recorder.node_set_aside(name, self.set_aside[node])

    def _resolve(self, actors: Sequence[Actor]) -> None:
        """Go on although every worker is stuck, or end the run if that has been of no use."""
        by_place = {actor.place: actor for actor in actors}
        sick, error = self._health.resolve(list(by_place))
        if error:
            raise RunFailed(every_worker_fails(error))
        for place in sick:
            log.warning("worker %s is replaced, because every worker fails", by_place[place].name)
            by_place[place].group.stop(by_place[place])
