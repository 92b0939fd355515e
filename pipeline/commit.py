"""The commit record of a shard: written last, it alone makes a shard done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.storage import Storage

FOLDER = "commits"
READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What became of one shard.

    state: done, or failed after all attempts (then there are no files, and the next run tries again).
    inputs: digest of what the shard was made of, so that a folder whose files changed is labelled again.
    counts: rows by status. files: {path below OUT: {bytes, sha256}}. seconds: by step, summed over samples and threads;
    `total` is the wall time. started, finished: seconds since the epoch. attempt: from 1.
    """

    shard: str
    state: Literal["done", "failed"]
    fingerprint: str
    attempt: int
    inputs: str = ""
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    worker: str = ""

    def is_done(self, fingerprint: str) -> bool:
        """Whether the shard needs no more work under these settings."""
        return self.state == "done" and self.fingerprint == fingerprint


def commit_path(shard: str) -> str:
    """Where the record of a shard lies below OUT."""
    return f"{FOLDER}/{shard}.json"


def write_commit(out: Storage, commit: Commit) -> None:
    """Put the record in place, whole or not at all."""
    text = json.dumps(dataclasses.asdict(commit), indent=1, sort_keys=True)
    out.write_bytes(commit_path(commit.shard), text.encode() + b"\n")


def read_commits(out: Storage) -> dict[str, Commit]:
    """All records below OUT by shard name; one that cannot be read does not count, as if it had not been written."""
    paths = [path for path, _ in out.files(FOLDER) if path.endswith(".json")]
    with ThreadPoolExecutor(READERS) as pool:
        records = pool.map(lambda path: _parse(out.read_bytes(path)), paths)
        return {record.shard: record for record in records if record is not None}


def _parse(data: bytes) -> Commit | None:
    try:
        return Commit(**json.loads(data))
    except (ValueError, TypeError):
        return None


def totals(commits: Iterable[Commit]) -> tuple[Counter[str], Counter[str]]:
    """Rows by status and seconds by step over many records."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for commit in commits:
        counts.update(commit.counts)
        seconds.update(commit.seconds)
    return counts, seconds


def verify_commit(out: Storage, commit: Commit) -> list[str]:
    """What is wrong with the files of a done shard: missing, of another size or content, or with other rows.

    Empty when all is as committed. Reads every byte once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = []
    for path, expected in commit.files.items():
        try:
            data = out.read_bytes(path)
        except FileNotFoundError:
            problems.append(f"{path}: missing; {expected['bytes']} bytes were committed")
            continue
        if len(data) != expected["bytes"]:
            problems.append(f"{path}: {len(data)} bytes; {expected['bytes']} were committed")
        elif hashlib.sha256(data).hexdigest() != expected["sha256"]:
            problems.append(f"{path}: the content differs from what was committed (sha256)")
        elif path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data), columns=["index", "status"])
            counts = Counter(table["status"].to_pylist())
            if table["index"].to_pylist() != list(range(commit.rows)) or counts != Counter(commit.counts):
                problems.append(f"{path}: {table.num_rows} rows {dict(counts)}; committed were {commit.rows}")
    return problems
