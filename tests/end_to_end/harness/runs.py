"""Runs of the commands, and their outputs in a form that can be compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import jobs.label
from pipeline.output.rows import decode_mask

# So low a threshold splits small scenes into many segments, so the equality of masks is meaningful.
FAST = ("--device", "cpu", "--resolution", "64", "--tau", "0.05")
BOTH = ("--format", "parquet,webdataset")
PROGRESS = re.compile(r"progress\.json|\.progress\.json\.[0-9a-f]+\.writing")
TIMES = ("seconds", "started", "finished", "attempt", "worker")
"""Fields of a commit record that differ between equal runs."""
DEADLINE = 540.0
"""Seconds for one command: far more than it needs, so only a command that hangs exceeds it."""


def label(source: Path | str, out: Path, *flags: str) -> int:
    """Run `diffseg label` with fast settings in this process and return the exit code."""
    return jobs.label.main([str(source), str(out), *FAST, *flags])


def environment() -> dict[str, str]:
    """Return the environment for a command in another process: this checkout, and no Ray cluster of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    added = {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    return kept | added | {"RAY_worker_niceness": "0"}  # tests/conftest.py states the reason


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these words to its end."""
    line = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=DEADLINE, check=False)


def committed(out: Path) -> int:
    """Return the number of commit records in OUT. A shard that was done twice may have two."""
    return sum(path.suffix == ".json" and path.name[0] != "." for path in (out / "commits").glob("*"))


def record_of(out: Path, shard: str) -> Path:
    """Return the path of the commit record of a finished shard."""
    (path,) = (out / "commits").glob(f"{shard}.*.json")
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return all rows of OUT, shard by shard in order."""
    return [row for path in sorted((out / "labels").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def masks_of(out: Path) -> dict[str, np.ndarray]:
    """Return the uint16 [H, W] label maps by key, of the rows that have one."""
    return {row["key"]: decode_mask(row["mask"]) for row in rows_of(out) if row["mask"] is not None}


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path, also hidden ones, without times, hosts and attempts.

    progress.json is left out, also under its temporary name: a run that ends does not wait long for a slow disk.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and not PROGRESS.fullmatch(path.name)]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    for path, data in files.items():
        if path.startswith(("commits/", "failures/")):
            record = {name: value for name, value in json.loads(data).items() if name not in TIMES}
            files[path] = json.dumps(record, sort_keys=True).encode()
    return files


def differences(out: Path, expected: Path) -> list[str]:
    """Return the paths at which two trees differ: names only, since a report of their bytes would be megabytes."""
    actual_files, expected_files = tree(out), tree(expected)
    paths = actual_files.keys() | expected_files.keys()
    return sorted(path for path in paths if actual_files.get(path) != expected_files.get(path))


def label_differences(out: Path, expected: Path) -> list[str]:
    """Return the paths at which the labels of two runs differ, whatever the versions of the files of their sources.

    It compares the rows of Parquet files, the bytes of tars, and commit records by shard, number of ok rows and number
    of rows. The tags of records and label shards, which depend on the versions of the source, are left out.
    """
    actual, wanted = _labels(out), _labels(expected)
    return sorted(path for path in actual.keys() | wanted.keys() if actual.get(path) != wanted.get(path))


def _labels(folder: Path) -> dict[str, Any]:
    labels: dict[str, Any] = {path.name: pq.read_table(path).to_pylist() for path in (folder / "labels").iterdir()}
    labels |= {path.name: path.read_bytes() for path in (folder / "webdataset").glob("*")}
    labels |= {re.sub(r"\.[0-9a-f]+\.(\d+-of-)", r".\1", path.name): True for path in (folder / "commits").iterdir()}
    return labels
