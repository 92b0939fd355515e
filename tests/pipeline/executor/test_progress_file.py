"""progress.json: what it says, and that a run never waits for it."""

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

from pipeline.executor import progress_file as progressfile
from pipeline.executor.progress_file import ProgressFile, ProgressReport, read_progress
from pipeline.executor.protocol import InHand, PoolState, WorkerProgress
from pipeline.storage import Storage

DEADLINE = 60.0


def state(*, samples: int = 0, rss: int = 0, since: float = 0.0) -> PoolState:
    progress = WorkerProgress(samples=samples, waiting="", rss=rss)
    in_hand = InHand(shard="s", attempt=2, since=time.monotonic() - since, worker="node:7", progress=progress)
    return PoolState(ready=1, asked=4, waiting=2, in_hand=[in_hand])


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progressfile, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(progressfile, "LAST_WORD_SECONDS", DEADLINE)


@pytest.fixture
def silent_store() -> Iterator[socket.socket]:
    """A store that takes requests and never answers, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def report_of_now(out: Storage) -> ProgressReport:
    """Return a report that was begun after this call: neither the present one nor one that was being written."""
    end, written = time.time() + DEADLINE, set()
    while len(written) < 3:
        assert time.time() < end
        time.sleep(0.01)
        report = read_progress(out)
        if report is not None:
            written.add(report.written)
    assert report is not None
    return report


@pytest.mark.usefixtures("often")
def test_it_holds_what_the_driver_knows_and_in_the_end_that_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = Storage(url=str(tmp_path))
    file = ProgressFile(out, todo=4)
    file.working(state(samples=10))
    file.committed("s", 10)
    file.working(state(samples=5, rss=700, since=30.0))
    file.gave_up("t")
    assert read_progress(out) is None
    now[0] += 10
    file.begin()
    report = report_of_now(out)
    assert (report.state, report.todo, report.done, report.failed, report.waiting) == ("running", 4, 1, 1, 2)
    assert (report.workers_ready, report.workers_asked, report.images, report.worker_rss) == (1, 4, 15, 700)
    (shard,) = report.in_hand
    assert (shard["shard"], shard["attempt"], shard["worker"], shard["samples"]) == ("s", 2, "node:7", 5)
    assert shard["seconds"] == 40
    assert (report.rate, report.rate_seconds) == (1.5, 10)
    # Two shards of ten images are left, five of which have been labelled.
    assert report.left == pytest.approx(10)
    file.working(state(samples=7, rss=600))
    file.committed("s", 7)
    report = report_of_now(out)
    assert (report.done, report.images, report.in_hand) == (2, 17, []), "a shard that is done is no longer in flight"
    file.working(state(samples=3, rss=600))
    file.close("stopped")
    last = read_progress(out)
    assert last is not None
    assert (last.state, last.images, last.in_hand, last.waiting, last.worker_rss) == ("stopped", 17, [], 1, 700)
    assert not last.is_stale()


def test_the_rate_is_that_of_the_last_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ProgressFile(Storage(url=str(tmp_path)), todo=10)
    assert file._rate(0.0, 0) == (None, 0.0), "no worker has been there"
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    file.working(state())
    assert file._rate(1100.0, 500) == (5.0, 100.0)
    for tick in range(1, 100):
        rate, seconds = file._rate(1100.0 + 15 * tick, 500 + 30 * tick)
    assert rate == pytest.approx(2.0)
    assert seconds == progressfile.RATE_SECONDS
    assert len(file._images) == progressfile.RATE_SECONDS / 15 + 1
    assert file._rate(1100.0 + 15 * 100, 0) == (0.0, progressfile.RATE_SECONDS), (
        "an attempt that failed takes images away"
    )


@pytest.mark.usefixtures("often")
def test_what_cannot_be_written_is_logged_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "progress.json").mkdir()
    tries = threading.Semaphore(0)
    write_bytes = Storage.write_bytes

    def counted(storage: Storage, path: str, data: bytes) -> None:
        tries.release()
        write_bytes(storage, path, data)

    monkeypatch.setattr(Storage, "write_bytes", counted)
    file = ProgressFile(Storage(url=str(tmp_path)), todo=1)
    with caplog.at_level(logging.WARNING):
        file.begin()
        for _ in range(3):
            assert tries.acquire(timeout=DEADLINE)
        file.close("ended")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "progress.json cannot be written, so `status` tells less"
    ]


def test_a_store_that_does_not_answer_is_not_waited_for(
    silent_store: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressfile, "LAST_WORD_SECONDS", 0.5)
    monkeypatch.setattr(progressfile, "PATIENCE_SECONDS", 0.5)
    endpoint = f"http://127.0.0.1:{silent_store.getsockname()[1]}"
    options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    file = ProgressFile(Storage(url="s3://bucket/out", options=options), todo=1)
    file.begin()
    file.close("ended")
    assert file._writer.is_alive(), "it still waits for the store, and nobody waits for it"
    silent_store.close()
    file._writer.join(DEADLINE)
    assert not file._writer.is_alive(), "or it would disturb other tests"


def test_a_driver_that_is_not_heard_of_is_told_from_one_that_has_ended(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    file = ProgressFile(out, todo=1)
    file.begin()
    file.close("ended")
    heard = read_progress(out)
    assert heard is not None
    long_ago = dataclasses.replace(heard, written=time.time() - 3600)
    assert not long_ago.is_stale()
    silent = dataclasses.replace(long_ago, state="running")
    assert silent.is_stale()
    assert silent.age() == pytest.approx(3600, abs=DEADLINE)
    assert not dataclasses.replace(silent, written=time.time() + 3600).is_stale(), "of a machine whose clock is ahead"


@pytest.mark.parametrize("text", ["", "[]", '{"written": 1}', json.dumps({"of": "another version"})])
def test_what_is_no_report_is_as_if_there_were_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(text)
    assert read_progress(Storage(url=str(tmp_path))) is None
