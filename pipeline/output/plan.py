"""The plan of a run: the shards of SRC compared with the records in OUT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.output.commit import FAILURES, Commit, CommitName, read_records
from pipeline.output.listing import ANY_INPUTS, Listing
from pipeline.output.records import SortedRecords, list_records
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
        outdated: Names of the records of the shards to label, which `delete_outdated` deletes.
        gone: Names of the records of each shard that is no longer in SRC.
    """

    shards: int
    todo: list[Shard]
    done: list[CommitName] = field(default_factory=list)
    failures: dict[str, Commit] = field(default_factory=dict)
    outdated: list[CommitName] = field(default_factory=list)
    gone: Mapping[str, list[CommitName]] = field(default_factory=dict)

    def counts_before(self) -> Counter[str]:
        """Count the rows of the done shards: those with the status ok, and all others together."""
        ok, rows = sum(name.ok for name in self.done), sum(name.rows for name in self.done)
        return +Counter({"ok": ok, FAILED_BEFORE: rows - ok})

    def delete_outdated(self, out: Storage) -> None:
        """Delete the records of the shards that will be labelled again.

        This happens once OUT is known to belong to this run, and before the first file is replaced, so that a kill in
        the middle leaves no record that does not match its files.
        """
        for name in self.outdated:
            out.delete(name.path)
        self.outdated = []


def make_plan(
    out: Storage, shards: Sequence[Shard], listing: Listing, fingerprint: str | None, *, retry_failed: bool
) -> Plan:
    """Compare SRC with the records in OUT. Takes two listings, and one read for each recorded failure.

    Args:
        out: OUT.
        shards: Shards of SRC.
        listing: The listing of these shards.
        fingerprint: Fingerprint of the run that OUT holds; None if it holds none.
        retry_failed: Label only shards with a transient failure, and shards with a failure whose input has changed
            since. This takes reading every record.
    """
    plan = Plan(shards=len(shards), todo=list(shards))
    if fingerprint is None:
        return plan
    records = list_records(out, fingerprint, listing)
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    plan.failures = {failure.shard: failure for failure in failures if failure.shard in listing.inputs}
    again = _retried(out, plan, records, listing) if retry_failed else listing.inputs.keys() - records.done.keys()
    plan.done = [name for shard, name in records.done.items() if shard in listing.inputs and shard not in again]
    plan.todo = [shard for shard in shards if shard.name in again]
    plan.gone = records.gone
    plan.outdated = [name for shard in plan.todo for name in records.of(shard.name)]
    return plan


def _retried(out: Storage, plan: Plan, records: SortedRecords, listing: Listing) -> set[str]:
    """Return the names of the shards that --retry-failed labels again."""
    commits = read_records(out, [name.path for name in records.done.values()]).values()
    again = {commit.shard for commit in commits if commit.has_transient_failure()}
    again |= {shard for shard, names in records.stale.items() if any(name.ok < name.rows for name in names)}
    again |= {
        name
        for name, failure in plan.failures.items()
        if failure.transient or listing.inputs[name] not in (ANY_INPUTS, failure.inputs)
    }
    return again
