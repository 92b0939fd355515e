"""progress.json holds the state of the run, and the run never waits for it."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.executor import progress_file
from pipeline.executor.gpu_meter import GpuUse
from pipeline.executor.progress_file import ProgressFile, ProgressReport, read_progress
from pipeline.executor.protocol import RunState, ShardInFlight, WorkerProgress, WorkerReport
from pipeline.storage import Storage

DEADLINE = 60.0


def state(*, samples: int = 0, rss: int = 0, since: float = 0.0) -> RunState:
    progress = WorkerProgress(samples=samples, waiting="", rss=rss)
    in_flight = ShardInFlight(shard="s", attempt=2, since=time.monotonic() - since, worker="node:7", progress=progress)
    return RunState(ready=1, requested=4, waiting=2, in_flight=[in_flight])


@pytest.fixture
def written_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_file, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(progress_file, "CLOSE_SECONDS", DEADLINE)


@pytest.fixture
def silent_store() -> Iterator[socket.socket]:
    """A store that accepts requests and never answers, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def new_report(out: Storage) -> ProgressReport:
    """Return a report that was started after this call: neither the present one nor the one that is being written."""
    end, written = time.time() + DEADLINE, set()
    while len(written) < 3:
        assert time.time() < end
        time.sleep(0.01)
        report = read_progress(out)
        if report is not None:
            written.add(report.written)
    assert report is not None
    return report


@pytest.mark.usefixtures("written_often")
def test_the_file_holds_the_state_of_the_run_and_finally_that_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = Storage(url=str(tmp_path))
    file = ProgressFile(out, todo=4)
    file.update(state(samples=10))
    file.shard_committed("s", 10)
    file.update(state(samples=5, rss=700, since=30.0))
    file.shard_failed("t")
    assert read_progress(out) is None
    now[0] += 10
    file.start()
    report = new_report(out)
    assert (report.state, report.todo, report.done, report.failed, report.waiting) == ("running", 4, 1, 1, 2)
    assert (report.workers_ready, report.workers_asked, report.images, report.worker_rss) == (1, 4, 15, 700)
    (shard,) = report.in_flight
    assert (shard["shard"], shard["attempt"], shard["worker"], shard["samples"]) == ("s", 2, "node:7", 5)
    assert shard["seconds"] == 40
    assert (report.rate, report.rate_seconds) == (1.5, 10)
    # Two shards of ten images are left, five of which have been labelled.
    assert report.left == pytest.approx(10)
    file.update(state(samples=7, rss=600))
    file.shard_committed("s", 7)
    report = new_report(out)
    assert (report.done, report.images, report.in_flight) == (2, 17, []), "a shard that is done is no longer in flight"
    file.update(state(samples=3, rss=600))
    file.close("stopped")
    last = read_progress(out)
    assert last is not None
    assert (last.state, last.images, last.in_flight, last.waiting, last.worker_rss) == ("stopped", 17, [], 1, 700)
    assert json.loads(out.read_bytes("progress.json")) == last.to_dict()
    assert last.to_dict()["in_hand"] == [], "the key of the file"
    assert not last.is_stale()


def test_the_use_of_gpus_is_the_mean_utilisation_and_the_fullest_memory_of_the_workers(tmp_path: Path) -> None:
    def of_workers(*gpus: GpuUse | None) -> RunState:
        (shard,) = state().in_flight
        progress = [WorkerProgress(samples=0, waiting="", gpu=gpu) for gpu in gpus]
        in_flight = [dataclasses.replace(shard, shard=f"{i}", progress=one) for i, one in enumerate(progress)]
        return RunState(ready=1, requested=1, waiting=0, in_flight=in_flight)

    file = ProgressFile(Storage(url=str(tmp_path)), todo=9)
    file.update(of_workers(None, None))
    assert (file._report().gpu_utilisation, file._report().gpu_memory_share) == (None, None)
    file.update(of_workers(GpuUse(0.9, 0.25), None, GpuUse(0.5, 0.75)))
    file.update(of_workers(None))  # the last workers are done
    assert (file._report().gpu_utilisation, file._report().gpu_memory_share) == (0.7, 0.75)


def test_the_start_up_time_is_that_of_the_slowest_worker(tmp_path: Path) -> None:
    file = ProgressFile(Storage(url=str(tmp_path)), todo=9)
    assert file._report().startup_seconds is None
    report = WorkerReport(model_sha256="", resolved={}, fingerprint="", environment={}, host="a")
    for seconds in (4.0, 31.5, 7.0):
        file.worker_ready(dataclasses.replace(report, startup_seconds=seconds))
    file.worker_ready(dataclasses.replace(report, host="b", gpu="NVIDIA L4"))
    assert file._report().startup_seconds == 31.5
    assert file._report().nodes == {"a": {"workers": 3, "gpu": ""}, "b": {"workers": 1, "gpu": "NVIDIA L4"}}


@pytest.mark.usefixtures("written_often")
def test_a_file_that_cannot_be_written_is_logged_once_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "progress.json").mkdir()
    attempts = threading.Semaphore(0)
    write_bytes = Storage.write_bytes

    def counting_write(storage: Storage, path: str, data: bytes) -> None:
        attempts.release()
        write_bytes(storage, path, data)

    monkeypatch.setattr(Storage, "write_bytes", counting_write)
    file = ProgressFile(Storage(url=str(tmp_path)), todo=1)
    with caplog.at_level(logging.WARNING):
        file.start()
        for _ in range(3):
            assert attempts.acquire(timeout=DEADLINE)
        file.close("ended")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "progress.json cannot be written, so `status` is out of date"
    ]


def test_the_run_does_not_wait_for_a_store_that_does_not_answer(
    silent_store: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(progress_file, "WRITE_TIMEOUT_SECONDS", 0.5)
    endpoint = f"http://127.0.0.1:{silent_store.getsockname()[1]}"
    options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    file = ProgressFile(Storage(url="s3://bucket/out", options=options), todo=1)
    file.start()
    file.close("ended")
    assert file._writer.is_alive(), "the writer still waits for the store, and `close` does not wait for the writer"
    silent_store.close()
    file._writer.join(DEADLINE)
    assert not file._writer.is_alive(), "otherwise it would disturb other tests"


def test_a_silent_driver_is_distinguished_from_one_that_has_ended(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    file = ProgressFile(out, todo=1)
    file.start()
    file.close("ended")
    report = read_progress(out)
    assert report is not None
    ended_long_ago = dataclasses.replace(report, written=time.time() - 3600)
    assert not ended_long_ago.is_stale()
    silent = dataclasses.replace(ended_long_ago, state="running")
    assert silent.is_stale()
    assert silent.age() == pytest.approx(3600, abs=DEADLINE)
    assert not dataclasses.replace(silent, written=time.time() + 3600).is_stale(), (
        "written by a machine whose clock is ahead"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"written": 1}', json.dumps({"of": "another version"})])
def test_a_file_that_is_no_report_is_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(text)
    assert read_progress(Storage(url=str(tmp_path))) is None
