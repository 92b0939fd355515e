"""The Ray cluster of a run: joined or started, and watched while the run lasts."""

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

POLL_SECONDS = 1.0
"""Interval between two questions to the head."""


@contextmanager
def connected(run: RunSettings, specs: Sequence[WorkerSpec]) -> Iterator[bool]:
    """Join the named cluster, or one that Ray finds, else start a Ray on this machine.

    If this process is already connected to Ray, that connection is used, and stays open after the block.

    Args:
        run: Address of the cluster and format of the log lines.
        specs: Workers that a Ray on this machine must have CPUs for.

    Yields:
        True if a Ray was started on this machine.

    Raises:
        ConnectionError: The named cluster does not answer.
    """
    if ray.is_initialized():
        yield False
        return
    # Ray installs a handler of SIGTERM that prints a stack trace; the caller's handler is put back.
    handler = signal.getsignal(signal.SIGTERM)
    with driver_loggers_kept():
        is_local = _join_or_start(run, specs)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield is_local
    finally:
        ray.shutdown()


def _join_or_start(run: RunSettings, specs: Sequence[WorkerSpec]) -> bool:
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
    cores = max(os.cpu_count() or 1, math.ceil(sum(spec.local_cpus for spec in specs)))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
    return True


def describe_cluster() -> str:
    """Return a sentence about the resources that the cluster has, and those that are free."""

    def describe(resources: dict[str, float]) -> str:
        return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"

    return f"The cluster has {describe(ray.cluster_resources())}; free are {describe(ray.available_resources())}"


class ClusterWatch:
    """Asks the head of the cluster for its nodes every second, in a thread, because the call hangs if the head is gone.

    Attributes:
        draining: Deadline of each draining node by id, in seconds since the epoch; 0 if there is no deadline.
        resources: Total resources of all living nodes.
    """

    def __init__(self) -> None:
        self.draining: Mapping[str, float] = {}
        self.resources: Mapping[str, float] = {}
        self._poll()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds since the last answer of the head."""
        return time.monotonic() - self._answered_at

    def is_alive(self, node: str) -> bool:
        """Ask the head whether a node is alive."""
        self._poll()
        return node in self._alive

    def close(self) -> None:
        """Stop asking, and wait briefly for a call that is in progress."""
        self._closed.set()
        self._thread.join(POLL_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                self._poll()
            except Exception as error:  # `silence` grows, and the scheduler acts on that
                log.debug("the head of the cluster does not answer: %s", error)

    def _poll(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        # Not a public function of Ray, but the one that Ray Serve and Ray Train use.
        draining = ray._private.state.state.get_draining_nodes()
        total: Counter[str] = Counter()
        for node in nodes:
            total.update(node["Resources"])
        self._alive = frozenset(node["NodeID"] for node in nodes)
        self.draining = {node: deadline / 1000 for node, deadline in draining.items()}
        self.resources = total
        self._answered_at = time.monotonic()
