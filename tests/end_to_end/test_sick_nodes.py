"""Nodes that die under pending workers, and nodes on which every shard fails, on real Ray clusters.

The workers sleep instead of labelling.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import clusters
import pytest
from clusters import Cluster, Node
from sleeping_run import SleepingRun


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, so that the other nodes do all the work."""
    with clusters.short_folder() as folder:
        cluster = Cluster(folder / "c", job_server=True)
        yield cluster
        cluster.kill()


def kill(node: Node) -> None:
    node.kill()


def terminate(node: Node) -> None:
    raylet = node.raylet()
    assert raylet is not None
    raylet.terminate()


@pytest.mark.cluster
@pytest.mark.parametrize("end", [kill, terminate])
def test_a_node_that_dies_with_pending_workers_is_no_failed_start(
    end: Callable[[Node], None], cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    node = cluster.join()
    node.wait()
    driver = start_run("--workers", "1:8", shards=300, seconds=0.5)
    driver.wait_until(driver.commits)
    end(node)
    successor = cluster.join()
    driver.wait_until(lambda: len(driver.nodes()) == 2)
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert "could not start" not in driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 300}
    assert len(driver.nodes()) == 2
    successor.kill()


@pytest.mark.cluster
def test_a_spot_notice_for_the_only_node_ends_no_run(cluster: Cluster, start_run: Callable[..., SleepingRun]) -> None:
    """With one busy worker and more pending ones than nodes, the node drains and then goes."""
    node = cluster.join()
    node.wait()
    driver = start_run("--workers", "1:8", shards=300, seconds=0.5)
    driver.wait_until(driver.commits)
    (draining,) = driver.nodes()
    cluster.drain(draining, seconds=30)
    driver.wait_for_output("is draining; it gets no more shards")
    node.kill()
    successor = cluster.join()
    driver.wait_until(lambda: len(driver.nodes()) == 2)
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert "could not start" not in driver.output()
    assert Counter(commit.attempt for commit in driver.commits()) == {1: 300}
    successor.kill()


@pytest.mark.parametrize(
    ("sick", "error"),
    [("disk", "OSError: .*No space left"), pytest.param("odd", "RuntimeError: odd", marks=pytest.mark.cluster)],
)
def test_a_node_on_which_every_shard_fails_is_set_aside_and_costs_no_shard_its_attempts(
    sick: str, error: str, cluster: Cluster, start_run: Callable[..., SleepingRun]
) -> None:
    nodes = [cluster.join(), cluster.join(variables={"SLEEPERS_SICK": sick})]
    for node in nodes:
        node.wait()
    driver = start_run("--workers", "2", shards=300, seconds=1.0)
    driver.wait_for_output("is set aside for the rest of the run: ")
    driver.hurry()
    assert driver.wait() == 0, driver.output()
    assert len(driver.commits()) == 300
    assert len(driver.nodes()) == 1
    reason = rf"was set aside: \d+ shards in a row failed there, and \d+ of them succeeded elsewhere: {error}"
    assert re.search(reason, driver.output()), driver.output()
    for node in nodes:
        node.kill()
