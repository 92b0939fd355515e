"""Runs from bucket to bucket on a real S3 server that injects faults, is down, or is used by two runs at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from runs import BOTH, DEADLINE, FAST, environment, label, label_differences
from store_faults import StoreFaults
from warm import WarmCommand

import jobs.verify
from pipeline.storage import Storage

OUTAGE_SECONDS = 60.0
HELD = f"GET /{PHOTOGRAPHS}/scenes/00000[34].tar"
"""The last two of the five shards: while their requests are held, a run with two workers cannot finish."""


@pytest.fixture(scope="module")
def source(scene_tars: Path, object_store: ObjectStore) -> str:
    """Upload the scenes as five tars to the bucket that the labeller cannot write to, and return their URL."""
    object_store.upload(scene_tars, PHOTOGRAPHS, "scenes")
    return f"s3://{PHOTOGRAPHS}/scenes"


@pytest.fixture
def assert_is_labelled(object_store: ObjectStore, out: str, labelled: Path, tmp_path: Path) -> Callable[[], None]:
    """Return a check that OUT holds what an undisturbed run from local files leaves, except for the name of SRC."""

    def check() -> None:
        object_store.download(LABELS, out.removeprefix(f"s3://{LABELS}/"), tmp_path / "downloaded")
        assert label_differences(tmp_path / "downloaded", labelled) == []

    return check


def driver(source: str, out: str, variables: dict[str, str], *flags: str) -> subprocess.Popen[str]:
    """Start `diffseg label` in another process."""
    line = [sys.executable, "-m", "jobs.label", source, out, *FAST, *BOTH, *flags]
    output = subprocess.PIPE
    return subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment() | variables)


def warm(source: str, out: str, variables: dict[str, str], *flags: str) -> Callable[[], tuple[int, str]]:
    """Start the same command as a fork, and return a function that waits for its exit code and output."""
    started = WarmCommand("jobs.label", source, out, *FAST, *BOTH, *flags, variables=environment() | variables)

    def finish() -> tuple[int, str]:
        finished = started.wait(DEADLINE)
        return finished.returncode, finished.stdout + finished.stderr

    return finish


def through(proxy: FaultyProxy, store: ObjectStore) -> tuple[str, ...]:
    """Return the flags of a run in this process that reaches the store through the proxy."""
    return ("--no-ray", "--storage-options", json.dumps(store.options(endpoint=proxy.endpoint)), *BOTH)


def test_a_run_completes_although_requests_fail(
    source: str, out: str, proxy: FaultyProxy, object_store: ObjectStore, assert_is_labelled: Callable[[], None]
) -> None:
    # Of the 60 requests of this run, 5 % would be too few, so a third of them fail.
    proxy.inject(
        StoreFaults(slow_down=0.06, error=0.06, reset=0.06, lost_answer=0.06, reset_body=0.1, trickle=0.05, cut=0.1)
    )
    assert label(source, out, *through(proxy, object_store)) == 0
    assert sum(proxy.counts[fault] for fault in ("slow_down", "error", "reset", "lost_answer", "reset_body", "cut")) > 9
    assert_is_labelled()


def test_a_get_that_stalls_is_repeated(
    source: str,
    out: str,
    proxy: FaultyProxy,
    object_store: ObjectStore,
    assert_is_labelled: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recover_after_the_first() -> None:
        while not proxy.counts["stall"] and not over.wait(0.02):
            pass
        proxy.inject(StoreFaults())

    monkeypatch.setattr("pipeline.storage.filesystems.REQUEST_SECONDS", 3.0)  # the deadline that ends the stall
    proxy.inject(StoreFaults(stall=1.0))
    over, recovery = threading.Event(), threading.Thread(target=recover_after_the_first)
    recovery.start()
    try:
        assert label(source, out, *through(proxy, object_store)) == 0
    finally:
        over.set()
        recovery.join()
    assert proxy.counts["stall"] > 0
    assert_is_labelled()


def test_a_stale_listing_repeats_work_but_loses_no_row(
    source: str, out: str, proxy: FaultyProxy, object_store: ObjectStore, assert_is_labelled: Callable[[], None]
) -> None:
    assert label(source, out, *through(proxy, object_store)) == 0
    proxy.inject(StoreFaults(stale_listing=1.0, stale_seconds=3600.0))
    assert label(source, out, *through(proxy, object_store)) == 0
    assert proxy.counts["stale_listing"] > 0
    assert_is_labelled()


@pytest.mark.outage
def test_a_run_waits_for_a_store_that_is_down(
    source: str,
    out: str,
    proxy: FaultyProxy,
    object_store: ObjectStore,
    assert_is_labelled: Callable[[], None],
) -> None:
    variables, actors = object_store.environment(endpoint=proxy.endpoint), ("--address", "local", "--workers", "2")
    proxy.hold(HELD)
    run = driver(source, out, variables, *actors)
    wait_until_both_workers_are_held(run, proxy)
    proxy.go_down(OUTAGE_SECONDS)
    proxy.release()
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, output
    assert "workers are waiting: s3://" in output
    assert "does not answer" in output
    assert "all workers have resumed" in output
    assert "5 of 5 shards done; 20 images" in output
    code, output = warm(source, out, variables, *actors)()
    assert code == 0, output
    assert "5 of 5 shards done, 5 of them before" in output
    assert_is_labelled()


def test_a_store_that_stays_down_ends_the_run_and_a_later_run_resumes(
    source: str,
    out: str,
    proxy: FaultyProxy,
    object_store: ObjectStore,
    assert_is_labelled: Callable[[], None],
) -> None:
    variables = object_store.environment(endpoint=proxy.endpoint)
    proxy.hold(HELD)
    run = driver(source, out, variables, "--address", "local", "--workers", "2", "--store-timeout", "4")
    wait_until_both_workers_are_held(run, proxy)
    proxy.go_down()
    proxy.release()
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 1, output
    assert "has not answered for" in output
    assert "s3://" in output
    assert "run the same command again" in output.replace("\n", " ")
    assert "Traceback" not in output
    proxy.come_up()
    code, output = warm(source, out, variables, "--no-ray")()
    assert code == 0, output
    assert "5 of 5 shards done, 3 of them before" in output
    assert_is_labelled()


def test_two_runs_on_one_out_at_the_same_time(
    source: str, out: str, object_store: ObjectStore, assert_is_labelled: Callable[[], None]
) -> None:
    runs = [warm(source, out, object_store.environment(), "--no-ray") for _ in range(2)]
    results = [finish() for finish in runs]
    assert [code for code, _ in results] == [0, 0], results
    assert_is_labelled()


def test_of_two_runs_with_different_settings_at_the_same_time_one_is_refused(
    source: str, out: str, object_store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    taus = ("0.05", "0.06")
    runs = [warm(source, out, object_store.environment(), "--no-ray", "--tau", tau) for tau in taus]
    results = [finish() for finish in runs]
    assert sorted(code for code, _ in results) == [0, 2], results
    refused = next(output for code, output in results if code == 2)
    assert "holds a run with other settings" in refused
    assert "tau" in refused
    options = json.dumps(object_store.options())
    assert jobs.verify.main([out, "--storage-options", options]) == 0, capsys.readouterr().out


def test_storage_on_a_real_server(out: str, proxy: FaultyProxy, object_store: ObjectStore) -> None:
    """Storage keeps its contract although a fifth of the requests fail or lose their answer."""
    storage = Storage(url=out, options=object_store.options(endpoint=proxy.endpoint))
    proxy.inject(StoreFaults(slow_down=0.1, lost_answer=0.1))
    for number in range(40):
        storage.write_bytes(f"a/{number}", b"%d" % number)
    assert storage.read_small([f"a/{number}" for number in (7, 77, 30)]) == [b"7", None, b"30"]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: storage.create_bytes("run.json", b"%d" % number), range(8)))
    assert [created[int(storage.read_bytes("run.json"))], sum(created)] == [True, 1]
    storage.delete("a/0")
    storage.delete("a/0")
    big = os.urandom(2**20) * 40
    storage.write_bytes("big", big)
    with storage.open("big") as file:
        file.seek(2**24 - 3)
        assert file.read(7) == big[2**24 - 3 : 2**24 + 4]
        file.seek(-5, os.SEEK_END)
        assert file.read() == big[-5:]
        file.seek(0)
        assert file.read() == big
    assert [path for path, _ in storage.files()] == sorted([f"a/{n}" for n in range(1, 40)] + ["big", "run.json"])
    assert proxy.counts["slow_down"] > 5


def test_an_out_that_cannot_be_written_is_named(
    source: str, object_store: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    options = json.dumps(object_store.options())
    out = f"s3://{PHOTOGRAPHS}/out"
    assert label(source, out, "--no-ray", "--storage-options", options) == 1
    stderr = capfd.readouterr().err
    assert f"{out}/run.json: access is denied" in stderr
    assert "s3:PutObject" in stderr
    assert "Traceback" not in stderr


def wait_until_both_workers_are_held(run: subprocess.Popen[str], proxy: FaultyProxy) -> None:
    """Wait until three of the five shards are done and each worker waits for the request of one of the other two."""
    end = time.monotonic() + DEADLINE
    while len({request for request in proxy.held if request.endswith(".tar")}) < 2:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
