"""A run that is paused with SIGSTOP while it commits a shard, and continues when another run has taken over OUT.

tests/pipeline/executor/test_two_runs.py plays the same with many more orders of steps, in one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blank_worker import all_rows, blank_run, file_rows, keys_of
from changing_source import write_tar
from runs import DEADLINE, differences, environment

import jobs.status
import jobs.verify
from diffseg.settings import settings_of
from pipeline.errors import RunRefused
from pipeline.executor import live_run
from pipeline.executor.progress_file import read_progress
from pipeline.storage import Storage

PROGRAM = Path(__file__).parent / "harness" / "paused_label.py"
OTHER_SETTINGS = {"method": settings_of(tau=(0.1,))}


class PausedRun:
    """A run that has paused itself."""

    def __init__(self, source: Path, out: Path, pattern: str, number: int) -> None:
        """Start it, and wait until it has paused itself."""
        line = [sys.executable, str(PROGRAM), pattern, str(number), str(source), str(out)]
        self._process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self._process.communicate()[0]

    def finish(self) -> tuple[int, str]:
        """Let it continue to its end; return its exit code and what it printed."""
        self._process.send_signal(signal.SIGCONT)
        text, _ = self._process.communicate(timeout=DEADLINE)
        return self._process.returncode, " ".join(text.split())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def paused(source: Path, out: Path, pattern: str, number: int = 1) -> Iterator[PausedRun]:
    run = PausedRun(source, out, pattern, number)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, keys in (("a", "ab"), ("c", "cd"), ("e", "ef")):
        write_tar(tmp_path / "in" / f"{name}.tar", keys)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("pattern", "is_late"),
    [
        ("*/labels/a.parquet", True),  # between its look at run.json and the files
        # before its look, and between the files and the record, as test_two_runs.py does in every order of steps
        pytest.param("*/intents/*", False, marks=pytest.mark.cluster),
        pytest.param("*/commits/a.*", True, marks=pytest.mark.cluster),
    ],
)
def test_a_paused_run_with_an_older_listing_loses_and_doubles_no_row(
    pattern: str, is_late: bool, source: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    with paused(source, out, pattern) as older:
        write_tar(source / "a.tar", "abx", time=1_800_000_000)
        write_tar(source / "b.tar", "z")
        assert blank_run(source, out).shards == 4
        assert keys_of(all_rows(out)) == list("abcdefxz")
        code, text = older.finish()
    assert code == 1
    assert "another run with a newer listing of SRC has taken over OUT" in text
    # What it wrote late does not count: the shard is not done, and the next run labels it again.
    assert keys_of(all_rows(out)) == list("cdefz" if is_late else "abcdefxz")
    assert jobs.status.main([str(out)]) == (1 if is_late else 0)
    assert blank_run(source, out).images == (3 if is_late else 0)
    blank_run(source, fresh)
    assert differences(out, fresh) == []
    assert all_rows(out) == all_rows(fresh) == file_rows(out)


def test_overwrite_refuses_a_run_at_work_and_stops_one_that_was_presumed_dead(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "WATCH_SECONDS", 0.0)
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    with paused(source, out, "*/labels/*", 2) as live:
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        with pytest.raises(
            RunRefused, match=r"a run is at work here, on .* as process \d+; its last report is from 20"
        ):
            blank_run(source, out, label=OTHER_SETTINGS, overwrite=True)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        # Ten minutes later the driver is presumed dead, but it has only been paused.
        report = read_progress(Storage(url=str(out)))
        assert report is not None
        old = dataclasses.replace(report, written=time.time() - 600)
        (out / "progress.json").write_text(json.dumps(old.to_dict()))
        blank_run(source, out, label=OTHER_SETTINGS, overwrite=True)
        assert keys_of(all_rows(out)) == list("abcdef")
        code, text = live.finish()
    assert code == 1
    assert "another run with other settings has taken over OUT" in text
    # Its last file was written late.
    blank_run(source, out, label=OTHER_SETTINGS)
    assert jobs.verify.main([str(out)]) == 0
    blank_run(source, fresh, label=OTHER_SETTINGS)
    assert differences(out, fresh) == []
