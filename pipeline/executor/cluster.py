"""The watch over a Ray cluster: its nodes and resources, and whether its head still answers.

Only threads of the watch call the head, because such a call hangs if the head is gone, and after 60 s Ray ends the
process without any advice.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import ray

from pipeline.errors import RunFailed

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Interval between two questions to the head."""
HEAD_SECONDS = 30.0
"""Longest silence of the head. After 60 s Ray ends the process."""
LEAVE_SECONDS = 4.0
"""Time that the main thread has, after such a silence, to end by itself, and again after an interrupt."""
STEP_SECONDS = 0.2
"""Interval at which a waiting thread checks whether the head is lost."""

Result = TypeVar("Result")


class LivingNode(NamedTuple):
    """All resources of a node, in use or not, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


class ClusterWatch:
    """Asks the head of the cluster for its nodes every second, in a thread, and notices if the head is lost.

    A main thread that waits for something else is interrupted when the head is lost, and its process is ended if it
    does not react.

    Attributes:
        draining: Deadline of each draining node by id, in seconds since the epoch; 0 if there is no deadline.
        nodes: The living nodes by id.
        resources: Total resources of all living nodes.
        free: Resources that are not in use.
        asked_at: When the question was asked that has these answers, in seconds of `time.monotonic`.
        is_lost: True once the head has been silent for too long.
    """

    def __init__(self) -> None:
        self.draining: Mapping[str, float] = {}
        self.resources: Mapping[str, float] = {}
        self.free: Mapping[str, float] = {}
        self.nodes: Mapping[str, LivingNode] = {}
        self.asked_at = -1.0
        self._silence = 0.0
        self.is_lost = False
        self._is_main = threading.current_thread() is threading.main_thread()
        self._closed = threading.Event()
        self._poll_now = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="cluster-guard", daemon=True).start()

    def lost_error(self) -> RunFailed:
        """Return the error for a lost head."""
        return RunFailed(
            f"the head of the Ray cluster has not answered for {HEAD_SECONDS:.0f} s. All committed shards are safe; "
            "run the same command again, on this cluster or another, to resume"
        )

    def check(self) -> None:
        """Raise RunFailed if the head is lost."""
        if self.is_lost:
            raise self.lost_error()

    def refresh(self) -> None:
        """Wait for an answer to a question that is asked after this call. Raises RunFailed if the head is lost."""
        started = time.monotonic()
        while self.asked_at < started:
            self._poll_now.set()
            self.check()
            time.sleep(STEP_SECONDS / 10)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function that may call the head, in a thread, and return its result or raise its error.

        Raises:
            RunFailed: The head is lost.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:  # raised again in the calling thread
                errors.append(error)

        thread = threading.Thread(target=run, name="cluster-call", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(STEP_SECONDS)
            self.check()
        if errors:
            raise errors[0]
        return results[0]

    def describe(self) -> str:
        """Return a sentence about the resources that the cluster has, and those that are free."""

        def describe(resources: Mapping[str, float]) -> str:
            return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"

        return f"The cluster has {describe(self.resources)}; free are {describe(self.free)}"

    def close(self) -> None:
        """Stop asking, and wait briefly for a call that is in progress."""
        self._closed.set()
        self._poll_now.set()
        self._thread.join(POLL_SECONDS)

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                self._poll()
            except Exception as error:  # the silence grows, and `check` acts on that
                log.debug("the head of the cluster does not answer: %s", error)
            self._poll_now.wait(POLL_SECONDS)
            self._poll_now.clear()

    def _poll(self) -> None:
        asked_at = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        # Not a public function of Ray, but the one that Ray Serve and Ray Train use.
        draining = ray._private.state.state.get_draining_nodes()
        free = ray.available_resources()
        total: Counter[str] = Counter()
        for node in nodes:
            total.update(node["Resources"])
        self.nodes = {node["NodeID"]: LivingNode(node["Resources"], node["Labels"]) for node in nodes}
        self.draining = {node: deadline / 1000 for node, deadline in draining.items()}
        self.resources, self.free = total, free
        self._silence = 0.0
        self.asked_at = asked_at  # last, because `refresh` waits for it

    def _guard(self) -> None:
        """End the process with our message if the head is lost and the main thread does not end the block."""
        before = time.monotonic()
        while not self.is_lost:
            if self._closed.wait(STEP_SECONDS):
                return
            now = time.monotonic()
            # A process that was stopped for a while has not asked either, so that time does not count.
            self._silence += min(now - before, POLL_SECONDS)
            before = now
            self.is_lost = self._silence > HEAD_SECONDS
        if self._closed.wait(LEAVE_SECONDS):
            return
        if self._is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # A real signal ends a wait of the main thread. `connected` turns the KeyboardInterrupt into our error.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if self._closed.wait(LEAVE_SECONDS):
                return
        print(f"diffseg: {self.lost_error()}", file=sys.stderr, flush=True)
        os._exit(1)
