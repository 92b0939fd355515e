"""The Ray that a run uses: joined or started, and watched while it runs."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.executor.logs import driver_loggers_kept
from pipeline.settings import RunSettings
from pipeline.worker_pools import WorkerSpec

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


@contextmanager
def connected(run: RunSettings, pools: Sequence[WorkerSpec]) -> Iterator[bool]:
    """The cluster that is named or found, else a Ray on this machine; yields whether that one was started here.

    A Ray that this process has joined before is used as it is, and kept. Raises ConnectionError where the named one
    does not answer.
    """
    if ray.is_initialized():
        yield False
        return
    # Ray takes over SIGTERM, and prints a stack trace when it comes; whoever calls knows better what to do then.
    handler = signal.getsignal(signal.SIGTERM)
    with driver_loggers_kept():
        local = _join_or_start(run, pools)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield local
    finally:
        ray.shutdown()


def _join_or_start(run: RunSettings, pools: Sequence[WorkerSpec]) -> bool:
    logs = ray.LoggingConfig(encoding=run.log_format.upper(), additional_log_standard_attrs=["name", "process"])
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "logging_config": logs}
    named = run.address or os.environ.get("RAY_ADDRESS")
    if named != "local":
        try:
            ray.init(address=named or "auto", **options)
            return False
        except ConnectionError:
            if named:
                raise
    cores = max(os.cpu_count() or 1, math.ceil(sum(pool.local_cpus for pool in pools)))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
    return True


def cluster_in_words() -> str:
    """What the cluster has, and what of it is free, in a sentence."""

    def shown(resources: dict[str, float]) -> str:
        return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"

    return f"The cluster has {shown(ray.cluster_resources())}, of which free are {shown(ray.available_resources())}"


class ClusterWatch:
    """Asks the cluster's head for its nodes every second, in a thread: the question hangs where the head is gone.

    draining: nodes that are to go, by id, and when: seconds since the epoch, 0 for no certain time. resources: of all
    nodes that live.
    """

    def __init__(self) -> None:
        self.draining: Mapping[str, float] = {}
        self.resources: Mapping[str, float] = {}
        self._look()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds since the head answered last."""
        return time.monotonic() - self._answered_at

    def is_alive(self, node: str) -> bool:
        """Whether a node lives, by what the head says at this moment."""
        self._look()
        return node in self._alive

    def close(self) -> None:
        """Ask no more; a question under way is waited for, unless the head is gone."""
        self._closed.set()
        self._thread.join(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # silence tells
                log.debug("the head of the cluster: %s", error)

    def _look(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        # Not of Ray's public interface, but what Ray Serve and Ray Train go by.
        draining = ray._private.state.state.get_draining_nodes()
        total: Counter[str] = Counter()
        for node in nodes:
            total.update(node["Resources"])
        self._alive = frozenset(node["NodeID"] for node in nodes)
        self.draining = {node: deadline / 1000 for node, deadline in draining.items()}
        self.resources = total
        self._answered_at = time.monotonic()
