"""Tests of `diffseg status` on a run in progress, a finished run, and a run whose driver died."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
import doubles
import numpy as np
from labelled_runs import write_run

import jobs.status
from jobs.printing import counts_table
from pipeline.executor import progress_file
from pipeline.executor.driver import label_run
from pipeline.output import overview
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings

DEADLINE = 540.0


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the JSON document and the printed text."""
    capsys.readouterr()
    jobs.status.main([str(out), "--json"])
    facts = json.loads(capsys.readouterr().out)
    code = jobs.status.main([str(out)])
    return code, facts, capsys.readouterr().out


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, threading.Thread]]:
    """Yield OUT of a run of three shards, whose last one waits for `release`, and the thread of the run."""
    monkeypatch.setattr(progress_file, "INTERVAL_SECONDS", 0.05)
    out = tmp_path / "out"
    run = threading.Thread(
        target=label_run,
        args=(f"{tmp_path}/in/{{good-0,good-1,meet-0}}.tar", str(out)),
        kwargs={
            "settings": LabelSettings(),
            "worker": WorkerSettings(device="cpu"),
            "run": RunSettings(no_ray=True),
            "worker_class": doubles.Sleeper,
        },
    )
    run.start()
    yield out, run
    run.join()


def release(out: Path) -> None:
    """Let the last shard finish."""
    for name in ("meet-1", "meet-2"):
        (out / "meeting" / name).touch()


def test_a_run_in_progress_and_then_finished(
    unfinished: tuple[Path, threading.Thread], capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = unfinished
    end = time.monotonic() + DEADLINE
    try:
        in_flight: list[dict[str, Any]] = []
        while [shard["shard"] for shard in in_flight] != ["meet-0"]:
            assert time.monotonic() < end
            time.sleep(0.05)
            if (out / "progress.json").exists():
                code, facts, text = status(out, capsys)
                in_flight = facts["driver"]["in_hand"]
        driver = facts["driver"]
        assert (code, facts["done"], facts["missing"]) == (1, 2, 1)
        assert (driver["state"], driver["images"], driver["stale"]) == ("running", 20_000, False)
        assert re.search(r"last report \d+ s ago", text)
        assert "this run: 2 of 3 shards, 20,000 images, " in text
        assert "workers: 1 of 1 ready; shards: 1 in flight, 0 waiting; about " in text
        assert "meet-0 " in text
        assert "GPUs" not in text
        assert "node here: 1 worker\n" in text  # the workers without a model name their hosts differently
        assert "images/s for each worker" in text
        assert re.search(r"slowest shards: good-\d \(\d+ s, 10,000 images\), good-\d", text)
    finally:
        release(out)
    run.join()
    code, facts, text = status(out, capsys)
    assert (code, facts["done"], facts["driver"]["state"]) == (0, 3, "ended")
    assert "this run: 3 of 3 shards, 30,000 images, " in text
    assert "shard in flight" not in text
    assert "again" not in text


def test_a_driver_that_died(
    unfinished: tuple[Path, threading.Thread], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = unfinished
    end = time.monotonic() + DEADLINE
    while not (out / "meeting").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    release(out)
    run.join()
    report = json.loads((out / "progress.json").read_text())
    killed = report | {"state": "running", "written": time.time() - 840, "host": "node-a", "pid": 7}
    (out / "progress.json").write_text(json.dumps(killed))
    _, facts, text = status(out, capsys)
    assert facts["driver"]["stale"]
    assert "no sign of a driver for 14 min (driver on node-a, pid 7); run the same command again to continue" in text
    running = killed | {"written": time.time(), "gpu_utilisation": 0.874, "gpu_memory_share": 0.25}
    (out / "progress.json").write_text(json.dumps(running))
    assert "GPUs: 87 % busy, 25 % of memory in use" in status(out, capsys)[2]
    (out / "progress.json").write_text(json.dumps(running | {"startup_seconds": 61.3}))
    assert "workers started within 61 s" in status(out, capsys)[2]
    (out / "progress.json").write_text(json.dumps(killed | {"state": "stopped"}))
    assert "stopped 14 min ago (driver on node-a, pid 7); run the same command again" in status(out, capsys)[2]
    (out / "progress.json").unlink()
    code, facts, text = status(out, capsys)
    assert (code, facts["driver"]) == (0, None)
    assert "this run" not in text


def test_status_of_many_shards_says_what_comes_from_a_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {f"{key:02d}": None if key % 2 else np.zeros((2, 2), np.uint16) for key in range(20)}
    write_run(tmp_path / "out", labels, per_shard=1)
    monkeypatch.setattr(overview, "SAMPLE_RECORDS", 5)
    _, facts, text = status(tmp_path / "out", capsys)
    assert facts["counts"] == {"ok": 10, "not ok": 10}
    assert (facts["sample"]["records"], facts["sample"]["of"]) == (5, facts["done"])
    assert f"ms per image, nodes and slowest shards: from 5 of {facts['done']} records" in text
    assert re.search(r"rows that are not ok in \d of the records: undecodable \d", text)
    monkeypatch.undo()
    _, facts, text = status(tmp_path / "out", capsys)
    assert facts["counts"] == {"ok": 10, "undecodable": 10}
    assert "slowest shards: from" not in text


def test_steps_are_listed_in_the_order_of_the_work() -> None:
    stored = dict.fromkeys(sorted(["read", "decode", "unet", "merge", "refine", "my stage", "decide", "write"]), 1.0)
    table = counts_table({"ok": 1}, stored | {"total": 9.0}, 1)
    assert list(table.columns[2].cells) == [
        *("read", "decode", "unet", "merge", "refine"),
        *("my stage", "decide", "write"),
    ]
