"""The plan of a run: the shards of SRC compared with the records in OUT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.output.commit import FAILURES, FOLDER, Commit, CommitName, parse_name, read_records, tag_of
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

FAILED_BEFORE = "failed before"
"""Stands for every status except ok in the counts of earlier runs, which are taken from the names of records alone."""


@dataclass(kw_only=True)
class Plan:
    """The shards to label, and the records of the other shards.

    Attributes:
        shards: Number of shards of SRC.
        todo: Shards to label, in order.
        done: Names of the records of the done shards that are not labelled again.
        failures: Records of failed shards by name, without those that an attempt has labelled since.
    """

    shards: int
    todo: list[Shard]
    done: list[CommitName] = field(default_factory=list)
    failures: dict[str, Commit] = field(default_factory=dict)

    def counts_before(self) -> Counter[str]:
        """Count the rows of the done shards: those with the status ok, and all others together."""
        ok, rows = sum(name.ok for name in self.done), sum(name.rows for name in self.done)
        return +Counter({"ok": ok, FAILED_BEFORE: rows - ok})


def make_plan(out: Storage, shards: Sequence[Shard], fingerprint: str | None, *, retry_failed: bool) -> Plan:
    """Compare SRC with the records in OUT. Takes two listings, and one read for each recorded failure.

    The records of shards that will be labelled again are deleted, so that a kill in the middle leaves no record that
    does not match its files.

    Args:
        out: OUT.
        shards: Shards of SRC.
        fingerprint: Fingerprint of the run that OUT holds; None if it holds none.
        retry_failed: Label only shards with a transient failure. This takes reading every record.
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
        again = {record.shard for record in read_records(out, current).values() if record.has_transient_failure()}
        again |= {name for name, failure in plan.failures.items() if failure.transient}
    else:
        again = tags.keys() - done.keys()
    plan.done = [name for shard, name in done.items() if shard not in again]
    plan.todo = [shard for shard in shards if shard.name in again]
    for path, name in listed.items():
        if name.shard in again:
            out.delete(path)
    return plan
