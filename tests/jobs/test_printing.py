"""What commands print: no control characters, in any encoding, into closed streams, broken pipes and full disks."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from rich.table import Table
from runs import environment

from jobs.common import parsed
from jobs.printing import CleanConsole, print_line
from jobs.run_flags import RunFlags
from jobs.streams import clean
from pipeline.output.commit import Commit, write_commit
from pipeline.output.manifest import require_manifest, write_manifest
from pipeline.storage import Storage

ESCAPE = "\x1b]0;owned\x07"
LABELS = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)
HOSTILE_KEY = f"=a{ESCAPE}[/x]\u202e.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """OUT of a run whose source, keys, errors and progress hold control characters and markup."""
    source = tmp_path / f"in{ESCAPE}"
    for key in (HOSTILE_KEY, "b.png"):
        write_png(source / key, np.full((40, 60, 3), 90, np.uint8))
    write_run(tmp_path / "out", {HOSTILE_KEY: LABELS, "b.png": None}, source=source, per_shard=100)
    storage = Storage(url=str(tmp_path / "out"))
    failure = Commit(shard="lost", state="failed", fingerprint="0123456789abcdef", attempt=3, error=ESCAPE)
    write_commit(storage, failure)
    (path,) = (tmp_path / "out/commits").glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"counts": record["counts"] | {f"[/x]{ESCAPE}": 0}}))
    in_flight = {"attempt": 1, "worker": ESCAPE, "seconds": 1.0, "samples": 1, "waiting": f"[/x]{ESCAPE}"}
    counts = ("pid", "todo", "done", "failed", "waiting", "images", "workers_ready", "workers_asked")
    amounts = ("rate", "rate_seconds", "left", "driver_rss", "worker_rss", "gpu_memory")
    numbers = dict.fromkeys((*counts, *amounts), 1)
    progress = numbers | {"state": "running", "written": time.time(), "started": 1.0, "host": ESCAPE}
    storage.write_bytes(
        "progress.json", json.dumps(progress | {"in_hand": [in_flight | {"shard": f"{ESCAPE}[/x]"}]}).encode()
    )
    manifest = require_manifest(storage)
    write_manifest(storage, dataclasses.replace(manifest, shards=3, settings=manifest.settings | {"model": ESCAPE}))
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("status", []),
        ("status", ["--json"]),
        ("verify", []),
        ("report", ["--processes", "1"]),
        ("show", [HOSTILE_KEY, "--picture", "{}/a.png"]),
        ("show", ["b.png", "--picture", "{}/a.png"]),
        ("show", [f"none{ESCAPE}"]),
        ("export", ["{}/dest", "--to", "coco-panoptic", "--processes", "1"]),
        ("evaluate", ["{}/no" + ESCAPE, "--processes", "1"]),
        ("label", ["{}/other", "--no-ray"]),
    ],
)
def test_no_control_character_is_printed(
    command: str, words: list[str], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(out), *(word.replace("{}", str(tmp_path)) for word in words)]
    code = importlib.import_module(f"jobs.{command}").main(arguments)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert code in (0, 1, 2)
    assert text
    assert "Traceback" not in text
    assert clean(text) == text


def test_texts_are_cleaned_and_nothing_else_is_changed() -> None:
    kept = "é → [bold]x[/bold] :smile: 日本\n"
    assert clean(f"{kept}\t") == f"{kept}\t"
    assert clean(f"a{ESCAPE}\r\x9b\u202e\udcff") == r"a\x1b]0;owned\x07\r\x9b\u202e\udcff"
    stream = io.StringIO()
    console = CleanConsole(file=stream, width=80)
    table = Table("[/x]")
    table.add_row(f"[red]{ESCAPE}")
    console.print(table)
    print_line(console, kept)
    assert r"[red]\x1b]0;o" in stream.getvalue()
    assert kept in stream.getvalue()


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `jobs.` stands for `python -m jobs.`."""
    line = command.replace("jobs.", f"{shlex.quote(sys.executable)} -m jobs.")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=300,
        check=False,
    )


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """The quoted path of OUT of a finished run."""
    write_png(tmp_path / "in/a.png", np.full((40, 60, 3), 90, np.uint8))
    write_run(tmp_path / "out", {"a.png": LABELS}, source=tmp_path / "in")
    return shlex.quote(str(tmp_path / "out"))


def test_an_output_without_utf8_is_enough(plain: str) -> None:
    result = shell(f"jobs.status {plain}", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "in -> " in result.stdout.replace("\n", "")
    assert result.stdout.isascii()
    for line in ("jobs.status --help", "jobs.cli --help"):
        assert shell(line, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0").returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "jobs.status OUT --json >&-",
        "jobs.status OUT >&-",
        "jobs.status OUT >&- 2>&-",
        "jobs.cli --help >&-",
        "jobs.status OUT --json | true",
        "jobs.status OUT | true",
        "jobs.cli --help | true",
        "jobs.label --help | true",
    ],
)
def test_an_output_that_nobody_reads_is_no_error(line: str, plain: str) -> None:
    result = shell(line.replace("OUT", plain))
    assert (result.returncode, result.stderr) == (0, "")


def test_an_output_that_cannot_be_written_is_named(plain: str) -> None:
    result = shell(f"jobs.status {plain} --json > /dev/full")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "<stdout>" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_replaced_image_is_named(tmp_path: Path, plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "in/a.png", np.full((30, 70, 3), 90, np.uint8))
    show = importlib.import_module("jobs.show")
    assert show.main([str(tmp_path / "out"), "a.png", "--picture", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().err.replace("\n", " ")
    assert "has 70 x 30 pixels now and had 60 x 40 in the run, so it is another image" in text
    assert os.path.getsize(tmp_path / "a.png") > 0


def test_help_that_is_not_read_to_its_end_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(SystemExit) as ended:
        parsed(RunFlags, ["--help"], "status", None)
    assert ended.value.code == 0
