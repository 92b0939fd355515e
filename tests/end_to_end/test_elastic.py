"""Nodes that come and go under a run, on real Ray clusters. The workers sleep: what is seen is who gets which shard."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import clusters
import psutil
import pytest
from clusters import AutoscalingCluster, Cluster, Node
from runs import DEADLINE
from sleeping_run import SleepingRun as Driver


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with a CPU, and a second node."""
    with clusters.short_folder() as folder:
        cluster = Cluster(folder / "c")
        cluster.nodes[-1].wait()
        yield cluster
        cluster.kill()


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts drivers; none outlives its test."""
    drivers: list[Driver] = []

    def start(*flags: str, shards: int, seconds: float) -> Driver:
        drivers.append(Driver(cluster, tmp_path, shards=shards, seconds=seconds, flags=flags))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def raylet(node: Node) -> psutil.Process:
    node.wait()
    found = node.raylet()
    assert found is not None
    return found


def drain(cluster: Cluster, node: str, seconds: int) -> None:
    """Tell the cluster that a node is to go so soon, as `ray start --block` does when its machine is taken away."""
    line = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address, "--node-id", node]
    line += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    line += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(line, env=cluster.environment, check=True, capture_output=True, timeout=120)


def head_of(cluster: Cluster) -> str:
    """The id of its node, by a process that joins the cluster."""
    program = (
        "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False); "
        "print(*(node['NodeID'] for node in ray.nodes() if 'node:__internal_head__' in node['Resources']))"
    )
    variables = cluster.environment | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()[-1]


@pytest.mark.cluster
def test_nodes_that_drain_are_shut_down_or_vanish_cost_no_attempt_and_new_ones_get_workers(
    cluster: Cluster, run: Callable[..., Driver]
) -> None:
    second, known = cluster.nodes[-1], {head_of(cluster)}
    driver = run("--workers", "1:3", shards=70, seconds=2.0)

    def new_node() -> str:
        """The one node with a shard done that was not known before."""
        driver.until(lambda: driver.nodes() - known)
        (found,) = driver.nodes() - known
        known.add(found)
        return found

    new_node()
    third = cluster.join()
    draining = new_node()
    drain(cluster, draining, seconds=600)
    driver.until_said("is draining; it gets no more shards")
    by_draining = driver.by(draining)
    raylet(second).terminate()
    driver.until_said("a worker was lost and is replaced: its node is gone (ActorDiedError")
    fourth = cluster.join()
    new_node()
    raylet(fourth).kill()
    driver.until_said("its node is gone (ActorUnavailableError")

    assert driver.ended() == 0, driver.said()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 70}
    more = set(driver.by(draining)) - set(by_draining)
    assert len(more) <= 1, "after the notice it ended what it had, and got no more"
    third.kill()


def test_pools_of_several_kinds_get_the_nodes_and_fractions_that_they_ask_for(
    cluster: Cluster, run: Callable[..., Driver]
) -> None:
    joined = [cluster.join("--num-gpus", "1", "--labels", "zone=fast"), cluster.join("--resources", '{"slow": 1}')]
    for node in joined:
        node.wait()
    # A third of a GPU fits thrice, of which the node's CPU allows two; the other pool's resource is there for one.
    pools = "1:4 zone=fast cpus=0.5 gpus=0.33 batch=2; 0:9 slow=0.6 cpus=0.1 gpus=0"
    driver = run("--workers", pools, shards=24, seconds=1.0)
    assert driver.ended() == 0, driver.said()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 24}
    workers = Counter(worker.split()[0] for worker in {commit.worker for commit in driver.commits()})
    assert sorted(workers.values()) == [1, 2], "a worker on one of the two new nodes, two on the other"
    for node in joined:
        node.kill()


def test_sigterm_ends_a_run_like_ctrl_c(cluster: Cluster, run: Callable[..., Driver]) -> None:
    driver = run("--workers", "1", shards=50, seconds=0.5)
    driver.until(driver.commits)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ended() == 143, driver.said()
    assert "diffseg: stopped; run the same command again to continue" in driver.said()
    assert "Traceback" not in driver.said()
    assert "SIGTERM" not in driver.said()
    end = time.monotonic() + DEADLINE
    while cluster.workers():
        assert time.monotonic() < end, "a worker outlives its driver"
        time.sleep(0.1)


@pytest.mark.parametrize("phase", ["labelling", "starting"])
def test_a_head_that_is_gone_is_named_before_ray_ends_the_process(
    phase: str, cluster: Cluster, run: Callable[..., Driver]
) -> None:
    driver = run("--workers", "1", shards=200, seconds=0.5)
    if phase == "labelling":
        driver.until(driver.commits)
    else:
        driver.until_said("joined Ray at")
    clusters.kill_all(lambda: clusters.named("gcs_server", cluster.head.folder))
    killed = time.monotonic()
    words = "run the same command again, on this cluster or another, to resume"
    while driver.process.poll() is None and words not in " ".join(driver.said().split()):
        time.sleep(0.1)
    assert time.monotonic() - killed < 45
    assert driver.ended() == 1, driver.said()
    said = " ".join(driver.said().split())
    assert "the head of the Ray cluster has not answered for 30 s. All committed shards are safe; run the same" in said
    assert "Traceback" not in said
    assert "GCS" not in said


@pytest.mark.cluster
def test_an_autoscaler_brings_nodes_for_the_workers_that_are_asked_for_and_takes_them_away(
    tmp_path: Path, free_port: int
) -> None:
    with clusters.short_folder() as folder:
        cluster = AutoscalingCluster(folder / "c", max_nodes=3, port=free_port)
        assert cluster.raylets() == 1
        driver = Driver(cluster, tmp_path, shards=30, seconds=2.0, flags=("--workers", "1:3"))
        try:
            driver.until(driver.commits)
            before = len(driver.nodes())
            driver.until(lambda: len(driver.nodes()) == 3)
            assert driver.ended() == 0, driver.said()
        finally:
            driver.process.kill()
            driver.process.wait()
        assert before < 3, "it began with the first, and did not wait for all"
        assert Counter(commit.attempt for commit in driver.commits()) == {1: 30}
        end = time.monotonic() + DEADLINE
        while cluster.raylets() > 1:
            assert time.monotonic() < end, "idle nodes stay"
            time.sleep(0.2)
