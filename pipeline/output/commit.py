"""The record of a shard: written last, it alone makes a shard done.

Its name holds a tag of the run's fingerprint and of what the shard was made of, and how many of its rows are ok: a
listing tells what is done, and no record need be opened to go on with a run. What failed after all attempts lies in a
folder of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.digest import short_digest
from pipeline.output.manifest import Manifest
from pipeline.storage import Storage

FOLDER = "commits"
FAILURES = "failures"
PASSING_STATUSES = ("unreadable",)
"""Of rows whose input may be there another time."""

_RECORD = re.compile(rf"{FOLDER}/(?P<shard>.+)\.(?P<tag>[0-9a-f]{{16}})\.(?P<ok>\d+)-of-(?P<rows>\d+)\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What became of one shard.

    state: done, or failed after all attempts (then there are no files, and the next run tries again).
    inputs: digest of what the shard was made of, so that a folder whose files changed is labelled again.
    counts: rows by status. files: {path below OUT: {bytes, sha256}}. passing: of a failure, whether its reason may pass
    by itself. seconds: by step, summed over samples and threads; `total` is the wall time. started, finished: seconds
    since the epoch. attempt: from 1. batch_size: images that went through the model at once.
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
    batch_size: int = 0

    @property
    def path(self) -> str:
        """Where the record lies below OUT."""
        if self.state == "failed":
            return failure_path(self.shard)
        tag = tag_of(self.fingerprint, self.inputs)
        return f"{FOLDER}/{self.shard}.{tag}.{self.counts.get('ok', 0)}-of-{self.rows}.json"

    def has_passing(self) -> bool:
        """Whether another attempt may give more: what failed the shard, or a row of it, may have passed."""
        return self.passing or any(self.counts.get(status) for status in PASSING_STATUSES)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitName:
    """What the path of a done shard's record tells. ok: rows with that status."""

    shard: str
    tag: str
    ok: int
    rows: int


def tag_of(fingerprint: str, inputs: str) -> str:
    """16 hexadecimal digits of the settings of a run and of what a shard was made of."""
    return short_digest(f"{fingerprint} {inputs}")


def failure_path(shard: str) -> str:
    """Where the record of a failed shard lies below OUT."""
    return f"{FAILURES}/{shard}.json"


def parse_name(path: str) -> CommitName | None:
    """What a path of ``FOLDER`` tells; None where it is no record's."""
    match = _RECORD.fullmatch(path)
    if match is None:
        return None
    return CommitName(shard=match["shard"], tag=match["tag"], ok=int(match["ok"]), rows=int(match["rows"]))


def write_commit(out: Storage, commit: Commit) -> None:
    """Put the record in place, whole or not at all."""
    text = json.dumps(dataclasses.asdict(commit), indent=1, sort_keys=True)
    out.write_bytes(commit.path, text.encode() + b"\n")


def read_records(out: Storage, paths: Sequence[str]) -> dict[str, Commit]:
    """The records by their paths; one that is gone or cannot be read does not count, as if it had not been written."""
    parsed = ((path, _parsed(data)) for path, data in zip(paths, out.read_small(paths), strict=True))
    return {path: record for path, record in parsed if record is not None}


def read_commits(out: Storage) -> dict[str, Commit]:
    """All records below OUT by shard name; the latest where a shard has several."""
    paths = [path for folder in (FAILURES, FOLDER) for path, _ in out.files(folder)]
    records = sorted(read_records(out, paths).values(), key=lambda record: (record.state == "done", record.finished))
    return {record.shard: record for record in records}


class RunCommits(NamedTuple):
    """The records of a run by shard name."""

    done: dict[str, Commit]
    failed: dict[str, Commit]


def read_run_commits(out: Storage, manifest: Manifest) -> RunCommits:
    """Read the records of OUT and return those that count for the run of `manifest`.

    A record that was made with other settings (another fingerprint) is not a done shard of this run, and a shard that
    failed after all its attempts is not done either.
    """
    commits = read_commits(out)
    fingerprint = manifest.fingerprint
    return RunCommits(
        done={name: c for name, c in commits.items() if c.state == "done" and c.fingerprint == fingerprint},
        failed={name: c for name, c in commits.items() if c.state == "failed"},
    )


def _parsed(data: bytes | None) -> Commit | None:
    try:
        return Commit(**json.loads(data)) if data else None
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
