"""Nodes that join and leave during a run, on real Ray clusters.

The workers sleep, because the tests look only at which worker gets which shard. The shards of a run last until a test
has seen what it waits for.
"""

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
from sleeping_run import SleepingRun


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with a CPU, and a second node."""
    with clusters.short_folder() as folder:
        cluster = Cluster(folder / "c")
        cluster.nodes[-1].wait()
        yield cluster
        cluster.kill()


@pytest.fixture
def doomed_cluster() -> Iterator[Cluster]:
    """A cluster for one test, which kills its head."""
    with clusters.short_folder() as folder:
        cluster = Cluster(folder / "c")
        yield cluster
        cluster.kill()


def raylet(node: Node) -> psutil.Process:
    node.wait()
    process = node.raylet()
    assert process is not None
    return process


def head_of(cluster: Cluster) -> str:
    """Return the id of the head's node, which another process asks for."""
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
def test_nodes_that_drain_shut_down_or_vanish_cost_no_attempt_and_new_ones_get_workers(
    cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    second, known = cluster.nodes[-1], {head_of(cluster)}
    driver = start_run("--workers", "1:3", shards=400, seconds=2.0)

    def new_node() -> str:
        """Wait for a new node to finish a shard, and return its id."""
        driver.wait_until(lambda: driver.nodes() - known)
        (node,) = driver.nodes() - known
        known.add(node)
        return node

    new_node()
    third = cluster.join()
    draining = new_node()
    cluster.drain(draining, seconds=600)
    driver.wait_for_output("is draining; it gets no more shards")
    by_draining = driver.shards_of(draining)
    raylet(second).terminate()
    driver.wait_for_output("a worker was lost and is replaced: its node is gone (ActorDiedError")
    fourth = cluster.join()
    new_node()
    raylet(fourth).kill()
    driver.wait_for_output("its node is gone (ActorUnavailableError")
    driver.hurry()

    assert driver.wait() == 0, driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 400}
    more = set(driver.shards_of(draining)) - set(by_draining)
    assert len(more) <= 1, "after the notice it finishes its shard, and gets no more"
    third.kill()


def test_pools_of_several_kinds_get_the_nodes_and_fractions_that_they_request(
    cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    joined = [cluster.join("--num-gpus", "1", "--labels", "zone=fast"), cluster.join("--resources", '{"slow": 1}')]
    for node in joined:
        node.wait()
    # A GPU has room for three workers, of which the node's CPU allows two. The other pool's resource allows one.
    pools = "1:4 zone=fast cpus=0.5 gpus=0.33 batch=2; 0:9 slow=0.6 cpus=0.1 gpus=0"
    driver = start_run("--workers", pools, shards=300, seconds=1.0)
    driver.wait_until(lambda: len(driver.workers()) == 3)
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 300}
    workers = Counter(worker.split()[0] for worker in driver.workers())
    assert sorted(workers.values()) == [1, 2], "a worker on one of the two new nodes, two on the other"
    for node in joined:
        node.kill()


def test_sigterm_ends_a_run_like_ctrl_c(cluster: Cluster, start_run: Callable[..., SleepingRun]) -> None:
    driver = start_run("--workers", "1", shards=400, seconds=0.5)
    driver.wait_until(driver.commits)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 143, driver.output()
    assert "diffseg: stopped; run the same command again to continue" in driver.output()
    assert "Traceback" not in driver.output()
    assert "SIGTERM" not in driver.output()
    end = time.monotonic() + DEADLINE
    while cluster.workers():
        assert time.monotonic() < end, "a worker outlives its driver"
        time.sleep(0.1)


@pytest.mark.parametrize("phase", ["labelling", pytest.param("starting", marks=pytest.mark.cluster)])
def test_a_head_that_is_gone_is_named_before_ray_ends_the_process(
    phase: str, doomed_cluster: Cluster, tmp_path: Path
) -> None:
    driver = SleepingRun(doomed_cluster, tmp_path, shards=400, seconds=0.5, flags=("--workers", "1"))
    if phase == "labelling":
        driver.wait_until(driver.commits)
    else:
        driver.wait_for_output("joined Ray at")
    clusters.kill_all(lambda: clusters.named("gcs_server", doomed_cluster.head.folder))
    killed = time.monotonic()
    words = "run the same command again, on this cluster or another, to resume"
    while driver.process.poll() is None and words not in driver.output():
        time.sleep(0.1)
    assert time.monotonic() - killed < 45
    assert driver.wait() == 1, driver.output()
    lost = "the head of the Ray cluster has not answered for 30 s. All committed shards are safe; run the same"
    assert lost in driver.output()
    assert "Traceback" not in driver.output()
    assert "GCS" not in driver.output()


@pytest.mark.cluster
def test_an_autoscaler_adds_nodes_for_the_requested_workers_and_removes_them(tmp_path: Path, free_port: int) -> None:
    with clusters.short_folder() as folder:
        cluster = AutoscalingCluster(folder / "c", max_nodes=3, port=free_port)
        assert cluster.raylets() == 1
        driver = SleepingRun(cluster, tmp_path, shards=400, seconds=2.0, flags=("--workers", "1:3"))
        try:
            driver.wait_until(lambda: len(driver.nodes()) == 3)
            driver.hurry()
            assert driver.wait() == 0, driver.output()
        finally:
            driver.process.kill()
            driver.process.wait()
        starts = sorted({commit.worker: commit.started for commit in reversed(driver.commits())}.values())
        print(f"the workers began after {[round(start - starts[0], 1) for start in starts]} s")
        assert starts[2] - starts[0] > 0.1, "the first worker begins before all are ready"
        assert Counter(commit.attempt for commit in driver.commits()) == {1: 400}
        end = time.monotonic() + DEADLINE
        while cluster.raylets() > 1:
            assert time.monotonic() < end, "idle nodes stay"
            time.sleep(0.2)
