"""What a run has to do: the shards of SRC against the records that OUT holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.output.commit import FAILURES, FOLDER, Commit, CommitName, parse_name, read_records, tag_of
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

FAILED_BEFORE = "failed before"
"""Stands for every status but ok in the counts of earlier runs, which come from the names of records alone."""


@dataclass(kw_only=True)
class Plan:
    """Shards to label, and what there is of the others.

    shards: of SRC. todo: to be labelled, in order. done: names of the records of the others that are done. failures: by
    shard name, the recorded ones that no attempt has mended yet.
    """

    shards: int
    todo: list[Shard]
    done: list[CommitName] = field(default_factory=list)
    failures: dict[str, Commit] = field(default_factory=dict)

    def counts_before(self) -> Counter[str]:
        """Rows of the shards that are done: ok, and all others together."""
        ok, rows = sum(name.ok for name in self.done), sum(name.rows for name in self.done)
        return +Counter({"ok": ok, FAILED_BEFORE: rows - ok})


def make_plan(out: Storage, shards: Sequence[Shard], fingerprint: str | None, *, retry_failed: bool) -> Plan:
    """Compare SRC with the records of OUT: two listings, and one read for each failure.

    Records of shards that are to be labelled again are removed, so that a kill in mid-way leaves no record that its
    files do not match.

    fingerprint: of the run that OUT holds; None where it holds none. retry_failed: only what failed for a passing
    reason, which takes reading every record.
    """
    plan = Plan(shards=len(shards), todo=list(shards))
    if fingerprint is None:
        return plan
    tags = {shard.name: tag_of(fingerprint, shard.digest()) for shard in shards}
    listed = {path: name for path, size in out.files(FOLDER) if size and (name := parse_name(path))}
    current = [path for path, name in listed.items() if tags.get(name.shard) == name.tag]
    done = {listed[path].shard: listed[path] for path in current}
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    plan.failures = {failure.shard: failure for failure in failures if failure.shard in tags}
    if retry_failed:
        again = {record.shard for record in read_records(out, current).values() if record.has_passing()}
        again |= {name for name, failure in plan.failures.items() if failure.passing}
    else:
        again = tags.keys() - done.keys()
    plan.done = [name for shard, name in done.items() if shard not in again]
    plan.todo = [shard for shard in shards if shard.name in again]
    for path, name in listed.items():
        if name.shard in again:
            out.delete(path)
    return plan
