"""Commit records: a shard is done if and only if its record exists, so the record is written last.

The name of a record holds a tag of the run's fingerprint and of the shard's inputs, how many of its rows have the
status ok, and whether a part of the input could not be read. A listing therefore tells which shards are done, and a run
is resumed without opening any record. The records of shards that failed in all their attempts lie in a folder of their
own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.bounded_json import InvalidFile, struct_fields
from pipeline.digest import short_digest
from pipeline.output.schemas import parse_record
from pipeline.storage import Storage

FOLDER = "commits"
FAILURES = "failures"
TRANSIENT_STATUSES = ("unreadable",)
"""Statuses of rows that another attempt may label, because their input may be readable then."""

BROKEN_STATUSES = ("truncated", "damaged")
"""Statuses of rows that stand for a part of the input that could not be read, with an unknown number of samples."""

_NUMBER = r"0|[1-9]\d{0,17}"
_RECORD = re.compile(
    rf"{FOLDER}/(?P<shard>.+)\.(?P<tag>[0-9a-f]{{24}})\.(?P<ok>{_NUMBER})-of-(?P<rows>{_NUMBER})"
    rf"(?:-(?P<broken>{'|'.join(BROKEN_STATUSES)}))?\.json"
)
_JSON_KEYS = {"transient": "passing"}
"""Keys of a record's JSON that differ from the names of the attributes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The outcome of one shard.

    Attributes:
        shard: Name of the shard.
        state: "done", or "failed" in all attempts. A failed shard has no files, and the next run tries it again.
        fingerprint: Fingerprint of the settings that the shard was labelled with.
        attempt: Number of the last attempt, from 1.
        inputs: `Shard.digest` of the inputs that were read; if they change, the shard is labelled again.
        rows: Number of rows.
        counts: Number of rows by status.
        files: Size and checksum, ``{"bytes": …, "sha256": …}``, of each file of the label shard by its path below OUT.
        error: Why the shard failed, "" if it is done.
        transient: True if the shard failed for a reason that may go away by itself, such as an unreachable store.
        seconds: Seconds by step, summed over samples and threads; "total" is wall time.
        started: Start of the last attempt in seconds since the epoch.
        finished: End of the last attempt in seconds since the epoch.
        worker: Host of the worker.
        batch_size: Number of images in one pass of the model.
        notes: Sentences about the input for the summary of the run.
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
    transient: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    worker: str = ""
    batch_size: int = 0
    notes: Sequence[str] = ()

    @property
    def path(self) -> str:
        """Path of the record below OUT."""
        if self.state == "failed":
            return f"{FAILURES}/{self.shard}.json"
        return CommitName(
            shard=self.shard, tag=self.tag, ok=self.counts.get("ok", 0), rows=self.rows, broken=self.broken
        ).path

    @property
    def tag(self) -> str:
        """The `tag_of` the settings and the inputs."""
        return tag_of(self.fingerprint, self.inputs)

    @property
    def broken(self) -> str:
        """One of `BROKEN_STATUSES` if a part of the input could not be read, else ""."""
        return next((status for status in BROKEN_STATUSES if self.counts.get(status)), "")

    def has_transient_failure(self) -> bool:
        """Return True if another attempt may succeed where the shard, or one of its rows, has failed."""
        return self.transient or any(self.counts.get(status) for status in TRANSIENT_STATUSES)

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        values = {_JSON_KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        """Read the content of a record's file. Raises InvalidFile if it is no record."""
        return cls(**struct_fields(parse_record(data)))


class CommitName(NamedTuple):
    """What the path of a done shard's record says.

    Attributes:
        shard: Name of the shard.
        tag: The `tag_of` its fingerprint and its inputs.
        ok: Number of rows with the status ok.
        rows: Number of rows.
        broken: One of `BROKEN_STATUSES` if a part of the input could not be read, else "".
    """

    shard: str
    tag: str
    ok: int
    rows: int
    broken: str = ""

    @property
    def path(self) -> str:
        """Path of the record below OUT."""
        broken = f"-{self.broken}" if self.broken else ""
        return f"{FOLDER}/{self.shard}.{self.tag}.{self.ok}-of-{self.rows}{broken}.json"


class LabelShard(str):
    """The name of a label shard, with the tag of the commit record that counts for it.

    Attributes:
        tag: The tag that the shard's Parquet file holds too, unless another worker has written the file since.
    """

    tag: str

    def __new__(cls, name: str, tag: str) -> LabelShard:
        """Return the name, with its tag."""
        shard = super().__new__(cls, name)
        shard.tag = tag
        return shard

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for unpickling
        return str(self), self.tag


def settings_tag(fingerprint: str) -> str:
    """Return 8 hexadecimal digits for the settings of a run, with which the tags of its records begin."""
    return short_digest(fingerprint)[:8]


def tag_of(fingerprint: str, inputs: str) -> str:
    """Return 24 hexadecimal digits for the settings of a run and the inputs of a shard."""
    return settings_tag(fingerprint) + short_digest(inputs)


def parse_name(path: str) -> CommitName | None:
    """Parse the path of a record below OUT; None if it is not the path of a done shard's record."""
    match = _RECORD.fullmatch(path)
    if match is None:
        return None
    ok, rows = int(match["ok"]), int(match["rows"])
    return CommitName(shard=match["shard"], tag=match["tag"], ok=ok, rows=rows, broken=match["broken"] or "")


def write_commit(out: Storage, commit: Commit) -> None:
    """Write a record atomically."""
    out.write_bytes(commit.path, commit.to_json())


def delete_commit(out: Storage, commit: Commit) -> None:
    """Delete the record of a shard."""
    out.delete(commit.path)


def read_records(out: Storage, paths: Sequence[str]) -> dict[str, Commit]:
    """Read records by path. One that is missing or damaged is left out, as if it had never been written."""
    parsed = ((path, _parse(data)) for path, data in zip(paths, out.read_small(paths), strict=True))
    return {path: record for path, record in parsed if record is not None}


def read_commits(out: Storage) -> dict[str, Commit]:
    """Read all records of OUT by shard name. Of several records of a shard, a done one and then the latest counts."""
    paths = [path for folder in (FAILURES, FOLDER) for path, _ in out.files(folder)]
    records = sorted(read_records(out, paths).values(), key=lambda record: (record.state == "done", record.finished))
    return {record.shard: record for record in records}


def record_problem(out: Storage, path: str) -> str:
    """Return why a file cannot be read as a record, "" if it can."""
    (data,) = out.read_small([path])
    try:
        Commit.from_json(data or b"")
    except InvalidFile as error:
        return str(error)
    return ""


def _parse(data: bytes | None) -> Commit | None:
    try:
        return Commit.from_json(data) if data else None
    except InvalidFile:
        return None


def totals(commits: Iterable[Commit]) -> tuple[Counter[str], Counter[str]]:
    """Sum the rows by status and the seconds by step over many records."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for commit in commits:
        counts.update(commit.counts)
        seconds.update(commit.seconds)
    return counts, seconds
