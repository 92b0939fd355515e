"""The functions of Ray that the scheduler calls, without processes, and with a clock that moves only while it waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from pipeline.executor.cluster import LivingNode
from pipeline.executor.protocol import WorkerProgress, WorkerReport
from pipeline.output.commit import Commit


class Reference:
    """A reference to an answer.

    Attributes:
        answer: The answer, or the error to raise.
        due: When the answer arrives, in seconds of the clock; None while it depends on something else.
    """

    def __init__(self) -> None:
        self.answer: Any = None
        self.due: float | None = None


class Method:
    """A remote method of an actor."""

    def __init__(self, call: Callable[..., Reference]) -> None:
        self.remote = call


class Handle:
    """An actor, which is pending until a node has a free CPU for it.

    Attributes:
        node: The id of its node; "" while it is pending.
        error: Why it is dead; None while it lives.
    """

    def __init__(self, ray: SimulatedRay, number: int) -> None:
        self.node = ""
        self.error: Exception | None = None
        self._actor_id = SimpleNamespace(hex=lambda: f"actor-{number}")
        self.references: list[Reference] = []
        self.__ray_call__ = Method(lambda function: self._call(0.0, lambda: self.node))
        self.load = Method(lambda job: self._call(ray.load_seconds, lambda: _report(number)))
        self.label = Method(lambda shard, attempt: self._call(ray.shard_seconds, lambda: _commit(shard, attempt)))
        self.progress = Method(lambda: self._call(0.0, lambda: WorkerProgress(samples=0, waiting="")))
        self._ray = ray
        self._waiting: list[tuple[Reference, float, Callable[[], Any]]] = []

    def _call(self, seconds: float, answer: Callable[[], Any]) -> Reference:
        self.references.append(Reference())
        self._waiting.append((self.references[-1], seconds, answer))
        if self.error is not None:
            self.die(self.error)
        elif self.node:
            self.begin()
        return self.references[-1]

    def begin(self) -> None:
        """Answer the calls, now that the actor has a node."""
        for reference, seconds, answer in self._waiting:
            reference.due, reference.answer = self._ray.now + seconds, answer()
        self._waiting.clear()

    def die(self, error: Exception) -> None:
        """Fail the calls that have no answer yet."""
        self.error = error
        for reference in self.references:
            if reference.due is None or reference.due > self._ray.now:
                reference.due, reference.answer = self._ray.now, error


def _died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))


def _report(number: int) -> WorkerReport:
    return WorkerReport(model_sha256="m", resolved={}, fingerprint="f", environment={}, host=f"host-{number}")


def _commit(shard: Any, attempt: int) -> Commit:
    return Commit(shard=shard.name, state="done", fingerprint="f", attempt=attempt, inputs="i", finished=time.time())


class SimulatedRay:
    """Nodes with one CPU each, which come and go at given times, and the actors on them. It is also the watch.

    Attributes:
        now: The time in seconds.
        starts: When each actor was started.
        load_seconds: Time that an actor takes to load its model.
        shard_seconds: Time that an actor takes for a shard.
        other_jobs: Ids of the nodes whose CPU another job uses.
    """

    def __init__(self, *, load_seconds: float = 1.0, shard_seconds: float = 5.0) -> None:
        self.now = 0.0
        self.starts: list[float] = []
        self.load_seconds, self.shard_seconds = load_seconds, shard_seconds
        self.other_jobs: set[str] = set()
        self.nodes: dict[str, LivingNode] = {}
        self.resources: Mapping[str, float] = {"CPU": 1.0}
        self.draining: dict[str, float] = {}
        self._handles: list[Handle] = []
        self._events: list[tuple[float, Callable[[], None]]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of Ray and of the clock in the modules of the scheduler."""
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now, sleep=self._sleep)
        for name in ("scheduler", "actors", "readiness", "attempts", "health"):
            monkeypatch.setattr(f"pipeline.executor.{name}.time", clock)
        for name in ("scheduler", "actors"):
            monkeypatch.setattr(f"pipeline.executor.{name}.ray", self)

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen at a time."""
        self._events.append((seconds, event))
        self._events.sort(key=lambda item: item[0])

    def add_node(self, name: str) -> None:
        """Add a node."""
        self.nodes[name] = LivingNode({"CPU": 1.0}, {})
        self.place()

    def kill_process(self, name: str) -> None:
        """Kill the process of the actor on a node that lives on."""
        for handle in self._handles:
            if handle.error is None and handle.node == name:
                handle.die(_died("The actor died unexpectedly before finishing this task."))
        self.place()

    def kill_node(self, name: str) -> None:
        """Kill a node, with its actor and the actors that are pending, because Ray may have queued them there."""
        del self.nodes[name]
        for handle in self._handles:
            if handle.error is None and handle.node in (name, ""):
                handle.die(_died("The actor died because its node has died. Node Id: 0f3a"))  # as Ray 2.60 says

    # What the modules call of Ray:

    def remote(self, _: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def wait(
        self, references: Sequence[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        def done() -> list[Reference]:
            return [one for one in references if one.due is not None and one.due <= self.now][:num_returns]

        if not done():
            self._sleep(timeout)
        return done(), [one for one in references if one not in done()]

    def get(self, reference: Reference) -> Any:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def kill(self, handle: Handle) -> None:
        handle.die(_died("The actor is dead because it was killed by `ray.kill`."))
        self.place()

    # What they call of the watch:

    @property
    def asked_at(self) -> float:
        return self.now

    def check(self) -> None:
        """The head answers always."""

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def describe(self) -> str:
        return f"The cluster has {len(self.nodes)} CPU"

    def _start(self) -> Handle:
        self.starts.append(self.now)
        self._handles.append(Handle(self, len(self._handles)))
        self.at(self.now, self.place)
        return self._handles[-1]

    def place(self) -> None:
        """Give the nodes with a free CPU to pending actors."""
        used: Iterable[str] = {handle.node for handle in self._handles if handle.error is None} | self.other_jobs
        free = [node for node in self.nodes if node not in used and node not in self.draining]
        for handle in [handle for handle in self._handles if handle.error is None and not handle.node]:
            if not free:
                return
            handle.node = free.pop()
            handle.begin()

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        while self._events and self._events[0][0] <= self.now:
            self._events.pop(0)[1]()
