"""Nodes that are lost, and the time that workers wait for one, on a simulated Ray and clock.

end_to_end/test_sick_nodes.py kills and drains nodes of real clusters.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from doubles import Sleeper
from simulated_ray import SimulatedRay

from pipeline.errors import RunFailed
from pipeline.executor.actors import ActorGroup
from pipeline.executor.protocol import Job, RunState, WorkerReport
from pipeline.executor.readiness import ReadinessCheck
from pipeline.executor.scheduler import Scheduler
from pipeline.executor.shard_queue import ShardQueue, Task
from pipeline.output.commit import Commit
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.worker_pools import WorkerSpec


class Recorder:
    """Keeps the attempts of the shards that are done."""

    def __init__(self) -> None:
        self.attempts: Counter[int] = Counter()

    def worker_ready(self, report: WorkerReport) -> None: ...

    def update(self, state: RunState) -> None: ...

    def node_set_aside(self, node: str, reason: str) -> None: ...

    def shard_committed(self, commit: Commit) -> None:
        self.attempts[commit.attempt] += 1

    def attempt_failed(self, task: Task, error: BaseException, *, will_retry: bool) -> None:
        pytest.fail(f"{task.shard.name}: {error}")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimulatedRay:
    """Ray without nodes."""
    simulated = SimulatedRay()
    simulated.install(monkeypatch)
    return simulated


def run(
    ray: SimulatedRay, *, shards: int, workers: int, start_timeout: float = 600.0, place_timeout: float = 600.0
) -> Counter[int]:
    """Run with 1 to `workers` workers, and return the number of shards that were done by the attempt."""
    storage = Storage(url="memory://nothing")
    job = Job(settings=LabelSettings(), worker=WorkerSettings(), source=storage, out=storage)
    group = ActorGroup(WorkerSpec(min_workers=1, max_workers=workers), job, Sleeper)
    queue = ShardQueue(Shard(name=f"{number:03d}", kind="tar", url=f"s3://in/{number}.tar") for number in range(shards))
    recorder = Recorder()
    watch: Any = ray
    readiness = ReadinessCheck([group], watch, start_timeout=start_timeout, place_timeout=place_timeout)
    timeouts = {"shard_timeout": 7200.0, "start_timeout": start_timeout}
    Scheduler([group], queue, recorder, watch=watch, readiness=readiness, **timeouts).run()
    return recorder.attempts


def test_the_only_node_may_die_again_and_again_with_its_pending_workers(
    ray: SimulatedRay, caplog: pytest.LogCaptureFixture
) -> None:
    ray.add_node("first")
    for number in range(5):  # seven workers die each time, six of which were pending
        ray.at(20.0 + 40.0 * number, lambda name=("first" if number == 0 else f"node-{number}"): ray.kill_node(name))
        ray.at(30.0 + 40.0 * number, lambda name=f"node-{number + 1}": ray.add_node(name))
    assert run(ray, shards=60, workers=7) == {1: 60}
    assert "could not start" not in caplog.text


def test_workers_are_requested_again_at_once_when_a_node_has_died_so_that_an_autoscaler_sees_them(
    ray: SimulatedRay,
) -> None:
    for name in ("first", "second"):
        ray.add_node(name)
    deaths = (31.3, 61.3, 91.3, 121.3)
    for number, death in enumerate(deaths):
        ray.at(death, lambda name=("second" if number == 0 else f"node-{number}"): ray.kill_node(name))
        ray.at(death + 9.0, lambda name=f"node-{number + 1}": ray.add_node(name))
    run(ray, shards=80, workers=8)
    for death in deaths:
        assert sum(death <= start < death + 2.0 for start in ray.starts) >= 7


@pytest.mark.parametrize("load_seconds", [1.0, 50.0])
def test_workers_whose_machine_shuts_down_while_its_raylet_drains_are_lost_with_their_node(
    load_seconds: float, ray: SimulatedRay, caplog: pytest.LogCaptureFixture
) -> None:
    ray.load_seconds = load_seconds
    ray.add_node("first")
    ray.at(22.3, lambda: ray.draining.update(first=0.0))
    ray.at(22.3, lambda: ray.kill_process("first"))
    ray.at(60.0, lambda: ray.kill_node("first"))
    ray.at(70.0, lambda: ray.add_node("second"))
    assert run(ray, shards=20, workers=7) == {1: 20}
    assert "could not start" not in caplog.text


def test_a_model_may_load_for_the_whole_time_on_each_node_that_is_lost(ray: SimulatedRay) -> None:
    ray.load_seconds = 80.0
    for number in range(4):
        ray.at(100.0 * number, lambda name=f"node-{number}": ray.add_node(name))
        if number < 3:
            ray.at(100.0 * number + 70.0, lambda name=f"node-{number}": ray.kill_node(name))
    assert run(ray, shards=3, workers=4, start_timeout=100.0) == {1: 3}
    assert ray.now > 380.0


def test_a_model_that_takes_too_long_on_its_place_ends_the_run(ray: SimulatedRay) -> None:
    ray.load_seconds = 101.0
    ray.at(500.0, lambda: ray.add_node("late"))
    with pytest.raises(RunFailed, match=r"too few workers loaded their model within 100 s \(--start-timeout; 0 of 3"):
        run(ray, shards=3, workers=3, start_timeout=100.0)
    assert 600.0 <= ray.now < 603.0


def test_a_node_may_come_later_than_a_model_may_load(ray: SimulatedRay) -> None:
    ray.at(3000.0, lambda: ray.add_node("late"))
    assert run(ray, shards=3, workers=3, start_timeout=100.0, place_timeout=3600.0) == {1: 3}


def test_a_run_ends_when_no_node_comes_in_time(ray: SimulatedRay) -> None:
    with pytest.raises(RunFailed, match=r"no nodes with room for enough workers came within 600 s \(--place-timeout;"):
        run(ray, shards=3, workers=3, start_timeout=1e9)
    assert 600.0 <= ray.now < 603.0


def test_each_wait_for_a_node_may_take_the_whole_time(ray: SimulatedRay) -> None:
    for number in range(4):
        ray.at(400.0 * (number + 1), lambda name=f"node-{number}": ray.add_node(name))
        ray.at(400.0 * (number + 1) + 8.0, lambda name=f"node-{number}": ray.kill_node(name))
    ray.at(2000.0, lambda: ray.add_node("last"))
    assert run(ray, shards=9, workers=3) == {1: 9}


def test_the_second_job_on_a_shared_cluster_waits_for_its_place_without_a_limit(ray: SimulatedRay) -> None:
    ray.other_jobs.add("shared")
    ray.add_node("shared")
    ray.at(7_200.0, ray.other_jobs.clear)
    ray.at(7_200.1, ray.place)
    assert run(ray, shards=3, workers=3) == {1: 3}
    assert ray.now > 7_200.0
