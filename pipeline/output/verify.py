"""Checks that OUT holds what its commit records promise."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.commit import FAILURES, FOLDER, Commit, parse_name, read_records, record_problem
from pipeline.output.listing import read_listing
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_metadata
from pipeline.output.records import has_failed, sort_records
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
        gone: Names of label shards that are not in the run's listing of SRC; the next run removes them.
        records: Paths of a shard's records below OUT, by shard name.
    """

    shards: int
    rows: int
    files: int
    problems: dict[str, list[str]]
    failed: list[str]
    missing: int
    stray: list[str]
    gone: list[str]
    records: dict[str, list[str]]

    @property
    def is_whole(self) -> bool:
        """True if every shard is done and nothing is wrong."""
        return not (self.problems or self.failed or self.missing or self.stray or self.gone)


def verify_run(out: Storage, manifest: Manifest) -> Verdict:
    """Read every record of OUT, and every committed byte once."""
    paths = [path for path, _ in out.files(FOLDER)]
    listing = read_listing(out, manifest.listing)
    commits = read_records(out, paths)
    names = [name for path in paths if (name := parse_name(path))]
    sorted_records = sort_records(paths, manifest.fingerprint, listing)
    records: defaultdict[str, list[str]] = defaultdict(list)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    stray = [path for path in paths if parse_name(path) is None]
    for name in names:
        records[name.shard].append(name.path)
        problems[name.shard] += _record_problems(out, name.path, commits.get(name.path), manifest)
    for shard in sorted_records.doubled:
        problems[shard].append(f"{', '.join(records[shard])}: more than one record")
    for shard in sorted_records.stale:
        if not problems[shard]:
            problems[shard].append(f"{records[shard][0]}: is of another version of the shard's source")
    readable = [commit for path, commit in commits.items() if path in records.get(commit.shard, ())]
    with ThreadPoolExecutor(READERS) as pool:
        results = pool.map(lambda commit: verify_commit(out, commit), readable)
        for commit, file_problems in zip(readable, results, strict=True):
            problems[commit.shard] += file_problems
    committed = {path for commit in readable for path in commit.files}
    stray += [path for folder in ("labels", "webdataset") for path, _ in out.files(folder) if path not in committed]
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    failed = sorted(failure.shard for failure in failures if has_failed(failure.shard, records, listing))
    gone = sorted(sorted_records.gone)
    shards = manifest.shards if listing is None else len(listing.inputs)
    present = [shard for shard in records if listing is None or shard in listing.inputs]
    return Verdict(
        shards=len(records),
        rows=sum(commit.rows for commit in readable),
        files=len(committed),
        problems={shard: texts for shard, texts in sorted(problems.items()) if texts},
        failed=failed,
        missing=max(0, shards - len(present) - len(failed)),
        stray=stray,
        gone=gone,
        records=dict(records),
    )


def delete_bad_records(out: Storage, verdict: Verdict) -> None:
    """Delete the records of the shards with problems, so that the next run labels these shards again."""
    for shard in verdict.problems:
        for path in verdict.records[shard]:
            out.delete(path)


def _record_problems(out: Storage, path: str, commit: Commit | None, manifest: Manifest) -> list[str]:
    if commit is None:
        reason = record_problem(out, path)
        return [f"{path}: cannot be read as a record" + f" ({reason})" * bool(reason)]
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
    if label_metadata(table.schema).get("tag") != commit.tag:
        return [f"{path}: was written for another version of the shard's source than its record"]
    counts = Counter(table["status"].to_pylist())
    if table["index"].to_pylist() == list(range(commit.rows)) and counts == Counter(commit.counts):
        return []
    return [
        f"{path}: holds {table.num_rows} rows {dict(counts)}; {commit.rows} rows {dict(commit.counts)} were committed"
    ]
