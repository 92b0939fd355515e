"""`diffseg status` while a run is going, when it has ended, and when its driver is gone."""

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

import jobs.status
from pipeline.executor import progress_file as progressfile
from pipeline.executor.driver import label_run
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings

DEADLINE = 540.0


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, and what it says in JSON and to people."""
    capsys.readouterr()
    jobs.status.main([str(out), "--json"])
    facts = json.loads(capsys.readouterr().out)
    code = jobs.status.main([str(out)])
    return code, facts, capsys.readouterr().out


@pytest.fixture
def going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, threading.Thread]]:
    """A run of three shards whose last one waits until two more have met it."""
    monkeypatch.setattr(progressfile, "EVERY_SECONDS", 0.05)
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
    for name in ("meet-1", "meet-2"):
        (out / "meeting" / name).touch()


def test_a_run_that_goes_on_and_ends(going: tuple[Path, threading.Thread], capsys: pytest.CaptureFixture[str]) -> None:
    out, run = going
    end = time.monotonic() + DEADLINE
    try:
        in_hand: list[dict[str, Any]] = []
        while [one["shard"] for one in in_hand] != ["meet-0"]:
            assert time.monotonic() < end
            time.sleep(0.05)
            if (out / "progress.json").exists():
                code, facts, said = status(out, capsys)
                in_hand = facts["driver"]["in_hand"]
        driver = facts["driver"]
        assert (code, facts["done"], facts["missing"]) == (1, 2, 1)
        assert (driver["state"], driver["images"], driver["stale"]) == ("running", 20_000, False)
        assert re.search(r"last heard \d+ s ago", said)
        assert "this run: 2 of 3 shards, 20,000 images, " in said
        assert "workers: 1 of 1 there; shards: 1 in hand, 0 waiting; about " in said
        assert "meet-0 " in said
    finally:
        release(out)
    run.join()
    code, facts, said = status(out, capsys)
    assert (code, facts["done"], facts["driver"]["state"]) == (0, 3, "ended")
    assert "this run: 3 of 3 shards, 30,000 images, " in said
    assert "shard in hand" not in said
    assert "again" not in said


def test_a_driver_that_is_gone(
    going: tuple[Path, threading.Thread], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = going
    end = time.monotonic() + DEADLINE
    while not (out / "meeting").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    release(out)
    run.join()
    report = json.loads((out / "progress.json").read_text())
    killed = report | {"state": "running", "written": time.time() - 840, "host": "node-a", "pid": 7}
    (out / "progress.json").write_text(json.dumps(killed))
    _, facts, said = status(out, capsys)
    assert facts["driver"]["stale"]
    assert "no sign of a driver for 14 min (driver on node-a, pid 7); run the same command again to go on" in said
    (out / "progress.json").write_text(json.dumps(killed | {"state": "stopped"}))
    assert "stopped 14 min ago (driver on node-a, pid 7); run the same command again" in status(out, capsys)[2]
    (out / "progress.json").unlink()
    code, facts, said = status(out, capsys)
    assert (code, facts["driver"]) == (0, None)
    assert "this run" not in said
