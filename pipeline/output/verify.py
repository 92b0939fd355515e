"""Checks that OUT holds what its commit records promise."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.commit import FAILURES, FOLDER, Commit, parse_name, read_records
from pipeline.output.manifest import Manifest
from pipeline.storage import Storage

READERS = 4
"""Number of threads that read and hash files."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a verification.

    Attributes:
        shards: Number of shards with a record.
        rows: Number of committed rows.
        files: Number of committed files.
        problems: What is wrong with the files or the records of a shard, by shard name. Such a shard must be labelled
            again.
        failed: Names of the shards that are recorded as failed.
        missing: Number of shards without any record.
        stray: Paths of files that belong to no shard.
        records: Paths of a shard's records below OUT, by shard name.
    """

    shards: int
    rows: int
    files: int
    problems: dict[str, list[str]]
    failed: list[str]
    missing: int
    stray: list[str]
    records: dict[str, list[str]]

    @property
    def is_whole(self) -> bool:
        """True if every shard is done and nothing is wrong."""
        return not (self.problems or self.failed or self.missing or self.stray)


def verify_run(out: Storage, manifest: Manifest) -> Verdict:
    """Read every record of OUT, and every committed byte once."""
    paths = [path for path, _ in out.files(FOLDER)]
    commits = read_records(out, paths)
    records: defaultdict[str, list[str]] = defaultdict(list)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    stray = [path for path in paths if parse_name(path) is None]
    for path in paths:
        if name := parse_name(path):
            records[name.shard].append(path)
            problems[name.shard] += _record_problems(path, commits.get(path), manifest)
    for shard, shard_records in records.items():
        if len(shard_records) > 1:
            problems[shard].append(f"{', '.join(shard_records)}: more than one record")
    readable = [commit for path, commit in commits.items() if path in records.get(commit.shard, ())]
    with ThreadPoolExecutor(READERS) as pool:
        results = pool.map(lambda commit: verify_commit(out, commit), readable)
        for commit, file_problems in zip(readable, results, strict=True):
            problems[commit.shard] += file_problems
    committed = {path for commit in readable for path in commit.files}
    stray += [path for folder in ("labels", "webdataset") for path, _ in out.files(folder) if path not in committed]
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    failed = sorted(failure.shard for failure in failures if failure.shard not in records)
    return Verdict(
        shards=len(records),
        rows=sum(commit.rows for commit in readable),
        files=len(committed),
        problems={shard: texts for shard, texts in sorted(problems.items()) if texts},
        failed=failed,
        missing=max(0, manifest.shards - len(records) - len(failed)),
        stray=stray,
        records=dict(records),
    )


def delete_bad_records(out: Storage, verdict: Verdict) -> None:
    """Delete the records of the shards with problems, so that the next run labels these shards again."""
    for shard in verdict.problems:
        for path in verdict.records[shard]:
            out.delete(path)


def _record_problems(path: str, commit: Commit | None, manifest: Manifest) -> list[str]:
    if commit is None:
        return [f"{path}: cannot be read as a record"]
    if commit.fingerprint != manifest.fingerprint:
        return [f"{path}: belongs to another run ({commit.fingerprint}; run.json says {manifest.fingerprint})"]
    return [] if commit.path == path else [f"{path}: holds the record that belongs at {commit.path}"]


def verify_commit(out: Storage, commit: Commit) -> list[str]:
    """Compare the files of a done shard with its record, reading every byte once.

    Returns:
        A text for each file that is missing, has another size or content, or holds other rows than were committed.
    """
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
            problems += _row_problems(path, data, commit)
    return problems


def _row_problems(path: str, data: bytes, commit: Commit) -> list[str]:
    try:
        table: Any = pq.read_table(pa.BufferReader(data), columns=["index", "status"])
    except (pa.ArrowException, OSError) as error:
        return [f"{path}: cannot be read as Parquet: {error}"]
    counts = Counter(table["status"].to_pylist())
    if table["index"].to_pylist() == list(range(commit.rows)) and counts == Counter(commit.counts):
        return []
    return [
        f"{path}: holds {table.num_rows} rows {dict(counts)}; {commit.rows} rows {dict(commit.counts)} were committed"
    ]
