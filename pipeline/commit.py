"""The record of a shard: written last, it alone makes a shard done.

Its name holds a tag of the run's fingerprint and of what the shard was made of, so a listing tells what is done and no
record need be opened to go on with a run. What failed after all attempts lies in a folder of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.storage import Storage

FOLDER = "commits"
FAILURES = "failures"
READERS = 32
PASSING_STATUSES = ("unreadable",)
"""Of rows whose input may be there another time."""

_RECORD = re.compile(rf"{FOLDER}/(.+)\.([0-9a-f]{{16}})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What became of one shard.

    state: done, or failed after all attempts (then there are no files, and the next run tries again).
    inputs: digest of what the shard was made of, so that a folder whose files changed is labelled again.
    counts: rows by status. files: {path below OUT: {bytes, sha256}}. passing: of a failure, whether its reason may pass
    by itself. seconds: by step, summed over samples and threads; `total` is the wall time. started, finished: seconds
    since the epoch. attempt: from 1.
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
    passing: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    worker: str = ""

    @property
    def path(self) -> str:
        """Where the record lies below OUT."""
        if self.state == "failed":
            return failure_path(self.shard)
        return commit_path(self.shard, self.fingerprint, self.inputs)

    def has_passing(self) -> bool:
        """Whether another attempt may give more: what failed the shard, or a row of it, may have passed."""
        return self.passing or any(self.counts.get(status) for status in PASSING_STATUSES)


def commit_path(shard: str, fingerprint: str, inputs: str) -> str:
    """Where the record of a done shard lies below OUT."""
    tag = hashlib.sha256(f"{fingerprint} {inputs}".encode()).hexdigest()[:16]
    return f"{FOLDER}/{shard}.{tag}.json"


def failure_path(shard: str) -> str:
    """Where the record of a failed shard lies below OUT."""
    return f"{FAILURES}/{shard}.json"


def shard_of(path: str) -> str | None:
    """The shard that a path of ``FOLDER`` is the record of; None where it is no record's."""
    match = _RECORD.fullmatch(path)
    return match[1] if match else None


def write_commit(out: Storage, commit: Commit) -> None:
    """Put the record in place, whole or not at all."""
    text = json.dumps(dataclasses.asdict(commit), indent=1, sort_keys=True)
    out.write_bytes(commit.path, text.encode() + b"\n")


def read_records(out: Storage, paths: Sequence[str]) -> dict[str, Commit]:
    """The records by their paths; one that is gone or cannot be read does not count, as if it had not been written."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="records") as pool:
        records = pool.map(lambda path: _read(out, path), paths)
        return {path: record for path, record in zip(paths, records, strict=True) if record is not None}


def read_commits(out: Storage) -> dict[str, Commit]:
    """All records below OUT by shard name; the latest where a shard has several."""
    paths = [path for folder in (FAILURES, FOLDER) for path, _ in out.files(folder)]
    records = sorted(read_records(out, paths).values(), key=lambda record: (record.state == "done", record.finished))
    return {record.shard: record for record in records}


def _read(out: Storage, path: str) -> Commit | None:
    try:
        return Commit(**json.loads(out.read_bytes(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def totals(commits: Iterable[Commit]) -> tuple[Counter[str], Counter[str]]:
    """Rows by status and seconds by step over many records."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for commit in commits:
        counts.update(commit.counts)
        seconds.update(commit.seconds)
    return counts, seconds
