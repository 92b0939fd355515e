"""Shards that kill, block or break their worker, on a real Ray with workers that need no model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import doubles
import pytest
import ray

from pipeline.errors import RunFailed, RunRefused, RunTakenOver
from pipeline.executor.driver import RunSummary, label_run
from pipeline.output.commit import read_commits
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

ray.cloudpickle.register_pickle_by_value(doubles)  # workers cannot import it by name


def run(
    out: Path, names: str, *, worker_class: type[doubles.Sleeper] = doubles.Sleeper, **settings: object
) -> RunSummary:
    """Run over shards with these names. The files need not exist, because braces are expanded without a listing."""
    return label_run(
        f"{out.parent}/in/{{{names}}}.tar",
        str(out),
        settings=LabelSettings(),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(**({"workers": 2} | settings)),  # type: ignore[arg-type]
        worker_class=worker_class,
    )


@pytest.mark.usefixtures("local_ray")
def test_a_shard_that_kills_its_worker_fails_after_three_attempts_and_harms_no_other(tmp_path: Path) -> None:
    summary = run(tmp_path / "out", "good-{0..9},kills,once,memory,broken")
    assert set(summary.failed) == {"kills", "memory", "broken"}
    assert summary.counts == {"ok": 110_000}
    records = read_commits(Storage(url=str(tmp_path / "out")))
    assert {name: record.attempt for name, record in records.items() if record.attempt > 1} == {
        "kills": 3,
        "once": 2,
        "memory": 3,
        "broken": 3,
    }
    assert {name: record.transient for name, record in records.items() if record.state == "failed"} == {
        "kills": True,
        "memory": True,
        "broken": False,
    }


@pytest.mark.usefixtures("local_ray")
def test_a_run_stops_when_another_one_has_taken_over_its_out(tmp_path: Path) -> None:
    with pytest.raises(RunTakenOver, match="newer listing"):
        run(tmp_path / "out", "overtaken,sleeps-{0..3}")
    assert read_commits(Storage(url=str(tmp_path / "out"))) == {}  # and no shard is recorded as failed


@pytest.mark.usefixtures("local_ray")
def test_as_many_workers_as_requested_have_a_shard_at_the_same_time(tmp_path: Path) -> None:
    assert run(tmp_path / "out", "meet-0,meet-1,meet-2", workers=3).failed == {}
    records = read_commits(Storage(url=str(tmp_path / "out"))).values()
    assert [record.attempt for record in records] == [1, 1, 1]
    assert len({record.worker for record in records}) == 3


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_could_not_start_is_started_again_while_others_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(tmp_path / "out", "meet-0,meet-1,meet-2", worker_class=doubles.LateStarter, workers=3)
    assert summary.failed == {}
    assert "a worker could not start, the next attempt is in 2 s: " in caplog.text
    assert "the hub is unreachable" in caplog.text


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("kind", "processes"), [("broken", 1), ("device", 2)])
def test_only_a_device_error_replaces_the_worker(kind: str, processes: int, tmp_path: Path) -> None:
    summary = run(tmp_path / "out", f"a-first,{kind},later", workers=1)
    assert list(summary.failed) == [kind]
    records = read_commits(Storage(url=str(tmp_path / "out")))
    assert len({records[name].worker for name in ("a-first", "later")}) == processes


@pytest.mark.usefixtures("local_ray")
def test_a_shard_beyond_its_timeout_fails_and_its_worker_is_replaced(tmp_path: Path) -> None:
    summary = run(tmp_path / "out", "good-{0..3},sleeps", workers=1, shard_timeout=1.0)
    assert summary.counts == {"ok": 40_000}
    assert summary.failed == {"sleeps": "not done within 1 s; the worker was killed"}
    record = read_commits(Storage(url=str(tmp_path / "out")))["sleeps"]
    assert (record.attempt, record.transient) == (3, True)


def test_retry_failed_retries_transient_failures_and_nothing_else(tmp_path: Path) -> None:
    out, names = tmp_path / "out", "good-{0..1},memory,broken,unreadable"
    with pytest.raises(RunRefused, match="holds no run"):
        run(out, names, no_ray=True, retry_failed=True)
    first = run(out, names, no_ray=True)
    assert (set(first.failed), first.images) == ({"memory", "broken"}, 30_000)
    (good,) = (out / "commits").glob("good-0.*")
    good.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.parent != out}
    again = run(out, names, no_ray=True, retry_failed=True)
    assert (set(again.failed), again.images) == ({"memory", "broken"}, 10_000)
    touched = {path.name.partition(".")[0] for path in before if path.stat().st_mtime_ns != before[path]}
    assert touched == {"memory", "unreadable"}
    assert not good.exists(), "a shard that was never labelled is no failure"


def test_a_plain_run_labels_missing_and_failed_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "good-{0..1},broken", no_ray=True)
    summary = run(out, "good-{0..1},broken", no_ray=True)
    assert (summary.done_before, list(summary.failed)) == (2, ["broken"])
    (failure,) = (out / "failures").iterdir()
    # The shard is repaired, so its failure is deleted once it is done.
    (tmp_path / "in").mkdir()
    doubles.Sleeper.misbehave, kept = lambda self, shard, attempt: None, doubles.Sleeper.misbehave
    try:
        assert run(out, "good-{0..1},broken", no_ray=True).failed == {}
    finally:
        doubles.Sleeper.misbehave = kept
    assert not failure.exists()


def test_a_store_error_that_the_driver_does_not_see_fails_only_the_shard(tmp_path: Path) -> None:
    summary = run(tmp_path / "out", "good-{0..3},gone", no_ray=True)
    assert list(summary.failed) == ["gone"]
    assert summary.counts == {"ok": 40_000}


def test_a_store_that_the_driver_cannot_reach_ends_the_run(tmp_path: Path, free_port: int) -> None:
    out, source = tmp_path / "out", f"http://127.0.0.1:{free_port}/{{first,gone,later}}.tar"
    with pytest.raises(
        RunFailed, match=rf"127.0.0.1:{free_port}.* has not answered.*run the same command again to resume"
    ):
        label_run(
            source,
            str(out),
            settings=LabelSettings(),
            worker=WorkerSettings(device="cpu"),
            run=RunSettings(no_ray=True, store_timeout=2.0),
            worker_class=doubles.Sleeper,
        )
    assert set(read_commits(Storage(url=str(out)))) == {"first"}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("settings", [{"workers": 2}, {"no_ray": True}])
def test_a_full_disk_of_all_workers_ends_the_run_and_is_charged_to_no_shard(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match=r"shard after shard fails .* No space left on device: '/scratch/diffseg'"):
        run(out, "full-{00..30},full-last", **settings)
    assert not (out / "failures").exists()
    assert set(read_commits(Storage(url=str(out)))) == set()


@pytest.mark.usefixtures("local_ray")
def test_shards_with_which_a_disk_seems_full_while_others_succeed_fail_alone(tmp_path: Path) -> None:
    summary = run(tmp_path / "out", "good-{0..3},full-{0..1},good-{4..7}", workers=1)
    assert set(summary.failed) == {"full-0", "full-1"}
    assert summary.counts == {"ok": 80_000}
    assert summary.set_aside == {}


@pytest.mark.usefixtures("local_ray")
def test_a_run_waits_for_a_place_that_another_job_uses_longer_than_a_model_may_load(tmp_path: Path) -> None:
    holder = ray.remote(doubles.Holder).options(num_cpus=4).remote()
    ray.get(holder.ready.remote())
    started = time.monotonic()
    threading.Timer(12.0, ray.kill, [holder]).start()
    assert run(tmp_path / "out", "good-{0..3}", workers="1:2", start_timeout=8.0).failed == {}
    assert time.monotonic() - started > 12.0


@pytest.mark.usefixtures("local_ray")
def test_a_run_does_not_wait_for_more_places_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no nodes with room for enough workers came within 4 s"):
        run(tmp_path / "out", "sleeps-{0..9},sleeps-last", workers="5:5", place_timeout=4.0)


HUNGRY = """
import os, sys, psutil
memory = psutil.virtual_memory()
# Ray kills workers above this limit, 3 GiB above the present use, so that the machine never runs out of memory.
os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + 3 * 2**30) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
sys.path[:0] = sys.argv[2:]
import doubles, test_scheduler
from pathlib import Path
doubles.Sleeper.seconds = 0.2
summary = test_scheduler.run(Path(sys.argv[1]), "good-{0..9},hungry", address="local")
print(summary.counts, summary.failed)
"""


@pytest.mark.cluster
def test_a_shard_that_takes_all_memory_fails_after_three_attempts_and_harms_no_other(tmp_path: Path) -> None:
    out, here = tmp_path / "out", Path(__file__).parent
    line = [sys.executable, "-c", HUNGRY, str(out), str(here), str(here.parent)]
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=540, check=False)
    assert "{'ok': 100000} {'hungry': 'OutOfMemoryError" in done.stdout, done.stdout + done.stderr
    record = read_commits(Storage(url=str(out)))["hungry"]
    assert (record.state, record.attempt, record.transient) == ("failed", 3, True)
