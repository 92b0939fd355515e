"""A pod of KubeRay is stopped: `ray start --block` receives SIGTERM and drains its node.

KubeRay starts `bash -c -- "ulimit …; ray start --block …"`, and bash replaces itself by the last command, so that the
signal of the kubelet reaches Ray.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
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


def start_run(cluster: Cluster, folder: Path, *, seconds: float) -> SleepingRun:
    """Start a run that lasts until `hurry`."""
    return SleepingRun(cluster, folder, shards=60, seconds=seconds, flags=("--workers", "1:3"))


def wait_for_a_third_node_at_work(driver: SleepingRun) -> None:
    """Wait until all three nodes have finished a shard. Each of them is then at its next one."""
    driver.wait_until(lambda: len(driver.nodes()) == 3)


def test_a_shard_that_fits_into_the_grace_period_is_finished(cluster: Cluster, tmp_path: Path) -> None:
    pod = cluster.join("--block", variables={BOUND: "100"})
    driver = start_run(cluster, tmp_path, seconds=4.0)
    wait_for_a_third_node_at_work(driver)
    taken = stop(pod)
    print(f"a shard of 4 s, a bound of 100 s: the node ended after {taken:.1f} s")
    assert taken < 60
    assert "is draining; it gets no more shards" in driver.output()
    assert "replaced" not in driver.output()
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 60}


def test_a_shard_that_does_not_fit_goes_to_another_worker_at_the_deadline(cluster: Cluster, tmp_path: Path) -> None:
    pod = cluster.join("--block", variables={BOUND: "5"})
    driver = start_run(cluster, tmp_path, seconds=30.0)
    wait_for_a_third_node_at_work(driver)
    taken = stop(pod)
    print(f"a shard of 30 s, a bound of 5 s: the node ended after {taken:.1f} s")
    assert taken < 25
    driver.wait_for_output("replaced: ")
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 60}


def test_without_a_head_a_node_ends_within_the_grace_period(cluster: Cluster) -> None:
    """Ray waits for an answer of the head then. Nothing depends on that node any more."""
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
