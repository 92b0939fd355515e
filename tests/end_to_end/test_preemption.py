"""A pod of KubeRay is stopped: `ray start --block` receives SIGTERM and drains its node.

KubeRay starts `bash -c -- "ulimit …; ray start --block …"`, and bash replaces itself by the last command, so that the
signal of the kubelet reaches Ray.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import clusters
import pytest
from clusters import Cluster, Node
from sleeping_run import SleepingRun

pytestmark = pytest.mark.cluster
BOUND = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with a CPU, and a second node with one."""
    with clusters.short_folder() as folder:
        cluster = Cluster(folder / "c")
        cluster.nodes[-1].wait()
        yield cluster
        cluster.kill()


def stop(node: Node) -> float:
    """Send SIGTERM to `ray start --block`, and return the seconds until it has ended."""
    begin = time.monotonic()
    node.starting.terminate()
    node.starting.wait(300)
    return time.monotonic() - begin


def preempt(
    cluster: Cluster, start_run: Callable[..., SleepingRun], *, shard_seconds: int, bound: int
) -> tuple[SleepingRun, float]:
    """Start a run on three nodes, and stop the third one when each of them is at its second shard or a later one.

    Args:
        cluster: The cluster, which gets the third node.
        start_run: The fixture.
        shard_seconds: Time that a worker takes for a shard until `hurry`.
        bound: Time in seconds after which Ray ends the node in any case.

    Returns:
        The run, and the seconds until the third node ended.
    """
    pod = cluster.join("--block", variables={BOUND: str(bound)})
    driver = start_run("--workers", "1:3", shards=60, seconds=shard_seconds)
    driver.wait_until(lambda: len(driver.nodes()) == 3)
    taken = stop(pod)
    print(f"a shard of {shard_seconds} s, a bound of {bound} s: the node ended after {taken:.1f} s")
    return driver, taken


def assert_no_attempt_is_lost(driver: SleepingRun) -> None:
    """Let the run end, and check that the first attempt at each shard succeeded."""
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 60}


def test_a_shard_that_fits_into_the_grace_period_is_finished(
    cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    driver, taken = preempt(cluster, start_run, shard_seconds=4, bound=100)
    assert taken < 60
    assert "is draining; it gets no more shards" in driver.output()
    assert "replaced" not in driver.output()
    assert_no_attempt_is_lost(driver)


def test_a_shard_that_does_not_fit_goes_to_another_worker_at_the_deadline(
    cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    driver, taken = preempt(cluster, start_run, shard_seconds=30, bound=5)
    assert taken < 25
    driver.wait_for_output("replaced: ")
    assert_no_attempt_is_lost(driver)


def test_without_a_head_a_node_ends_within_the_grace_period(cluster: Cluster) -> None:
    """Ray waits for an answer from the lost head. Nothing depends on the node any more."""
    pod = cluster.join("--block", variables={BOUND: "100"})
    while not clusters.named("raylet", pod.folder):
        assert pod.starting.poll() is None
        time.sleep(0.1)
    time.sleep(3)  # the node registers itself
    cluster.head.kill()
    taken = stop(pod)
    print(f"no head, a bound of 100 s: the node ended after {taken:.1f} s")
    assert taken < 120


def test_bash_passes_its_process_to_the_last_command() -> None:
    shell = subprocess.Popen(["bash", "-c", "--", "ulimit -n 64; sleep 60"])
    try:
        end = time.monotonic() + 30
        while Path(f"/proc/{shell.pid}/comm").read_text().strip() != "sleep":
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        shell.kill()
        shell.wait()
