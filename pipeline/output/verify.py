"""Does OUT hold what its records promise?"""

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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found.

    shards, rows, files: as committed. problems: {shard: what is wrong with its files or its records}; such a shard is
    to be labelled again. failed: names of the shards that are recorded as failed. missing: how many shards have no
    record at all. stray: files of no shard. records: {shard: paths of its records below OUT}.
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
        """Whether nothing is wrong and nothing is missing."""
        return not (self.problems or self.failed or self.missing or self.stray)


def verify_run(out: Storage, manifest: Manifest) -> Verdict:
    """Read every record, and every byte that they promise, once."""
    paths = [path for path, _ in out.files(FOLDER)]
    commits = read_records(out, paths)
    records: defaultdict[str, list[str]] = defaultdict(list)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    stray = [path for path in paths if parse_name(path) is None]
    for path in paths:
        if name := parse_name(path):
            records[name.shard].append(path)
            problems[name.shard] += _record_problems(path, commits.get(path), manifest)
    for shard, several in records.items():
        if len(several) > 1:
            problems[shard].append(f"{', '.join(several)}: more than one record")
    sound = [commit for path, commit in commits.items() if path in records.get(commit.shard, ())]
    with ThreadPoolExecutor(READERS) as pool:
        for commit, found in zip(sound, pool.map(lambda commit: verify_commit(out, commit), sound), strict=True):
            problems[commit.shard] += found
    promised = {path for commit in sound for path in commit.files}
    stray += [path for folder in ("labels", "webdataset") for path, _ in out.files(folder) if path not in promised]
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    failed = sorted(failure.shard for failure in failures if failure.shard not in records)
    return Verdict(
        shards=len(records),
        rows=sum(commit.rows for commit in sound),
        files=len(promised),
        problems={shard: found for shard, found in sorted(problems.items()) if found},
        failed=failed,
        missing=max(0, manifest.shards - len(records) - len(failed)),
        stray=stray,
        records=dict(records),
    )


def _record_problems(path: str, commit: Commit | None, manifest: Manifest) -> list[str]:
    if commit is None:
        return [f"{path}: cannot be read as a record"]
    if commit.fingerprint != manifest.fingerprint:
        return [f"{path}: is of another run ({commit.fingerprint}; run.json says {manifest.fingerprint})"]
    return [] if commit.path == path else [f"{path}: is the record that belongs at {commit.path}"]


def verify_commit(out: Storage, commit: Commit) -> list[str]:
    """What is wrong with the files of a done shard: missing, of another size or content, or with other rows.

    Empty when all is as committed. Reads every byte once.
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
    return [f"{path}: {table.num_rows} rows {dict(counts)}; committed were {commit.rows} rows {dict(commit.counts)}"]
