"""What a run has to do: the shards of SRC against the records that OUT holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.commit import FAILURES, FOLDER, Commit, commit_path, read_records, shard_of
from pipeline.samples import Shard
from pipeline.storage import Storage


@dataclass(kw_only=True)
class Plan:
    """Shards to label, and the records of those that stay as they are.

    shards: of SRC. todo: to be labelled, in order. done: paths of the records of the others that are done. failures: by
    shard name, the recorded ones that no attempt has mended yet.
    """

    out: Storage
    shards: int
    todo: list[Shard]
    done: list[str] = field(default_factory=list)
    failures: dict[str, Commit] = field(default_factory=dict)

    def read_done(self) -> list[Commit]:
        """The records of what was done before."""
        return list(read_records(self.out, self.done).values())


def make_plan(out: Storage, shards: Sequence[Shard], fingerprint: str | None, *, retry_failed: bool) -> Plan:
    """Compare SRC with the records of OUT: two listings, and one read for each failure.

    Records of shards that are to be labelled again are removed, so that a kill in mid-way leaves no record that its
    files do not match.

    fingerprint: of the run that OUT holds; None where it holds none. retry_failed: only what failed for a passing
    reason, which takes reading every record.
    """
    plan = Plan(out=out, shards=len(shards), todo=list(shards))
    if fingerprint is None:
        return plan
    present = {path for path, size in out.files(FOLDER) if size}
    expected = {shard.name: commit_path(shard.name, fingerprint, shard.digest()) for shard in shards}
    plan.done = [path for path in expected.values() if path in present]
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    plan.failures = {failure.shard: failure for failure in failures if failure.shard in expected}
    if retry_failed:
        again = {commit.shard for commit in plan.read_done() if commit.has_passing()}
        again |= {name for name, failure in plan.failures.items() if failure.passing}
        plan.done = [path for path in plan.done if shard_of(path) not in again]
    else:
        again = {name for name, path in expected.items() if path not in present}
    plan.todo = [shard for shard in shards if shard.name in again]
    for path in present:
        if shard_of(path) in again:
            out.delete(path)
    return plan
