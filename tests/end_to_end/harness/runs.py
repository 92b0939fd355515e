"""Runs of the commands, and what they leave, in a form that can be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import jobs.label
from pipeline.output.rows import decode_mask

# A threshold this low splits small scenes into many segments, so that equal masks say something.
FAST = ("--device", "cpu", "--resolution", "64", "--tau", "0.05")
BOTH = ("--format", "parquet,webdataset")
TIMES = ("seconds", "started", "finished", "attempt", "worker")
DEADLINE = 540.0
"""Seconds for one command: far more than it needs, so that only a command that hangs meets it."""


def label(source: Path | str, out: Path, *flags: str) -> int:
    """`diffseg label` in this process, on the small setting; the exit code."""
    return jobs.label.main([str(source), str(out), *FAST, *flags])


def environment() -> dict[str, str]:
    """For a command in a process of its own: this checkout, and no Ray cluster but its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    return kept | own | {"RAY_worker_niceness": "0"}  # conftest.py says why


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m` with these words, to its end."""
    line = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=DEADLINE, check=False)


def record_of(out: Path, shard: str) -> Path:
    """The record of a done shard."""
    (path,) = (out / "commits").glob(f"{shard}.*.json")
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All rows under OUT, shard by shard in their order."""
    return [row for path in sorted((out / "labels").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def masks_of(out: Path) -> dict[str, np.ndarray]:
    """uint16 [H, W] label maps by key, of the rows that have one."""
    return {row["key"]: decode_mask(row["mask"]) for row in rows_of(out) if row["mask"] is not None}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path; without what only tells the time and the place."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("progress.json", None)
    for path, data in found.items():
        if path.startswith(("commits/", "failures/")):
            record = {name: value for name, value in json.loads(data).items() if name not in TIMES}
            found[path] = json.dumps(record, sort_keys=True).encode()
    return found


def differences(out: Path, expected: Path) -> list[str]:
    """The paths at which two trees differ; names alone, since a report of the bytes would be of megabytes."""
    ours, theirs = tree(out), tree(expected)
    return sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
