"""The counts of a run of any size for `status` and the summary, without reading all of its commit records.

One listing returns the names of the records, which tell which shards are done, how many of their rows are ok, and which
are truncated or damaged. Records are read only for what their names do not tell: the other statuses of rows, and the
seconds of each step. Above `SAMPLE_RECORDS` records this is a sample at regular intervals in the order of the names;
runs with fewer shards are read completely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.output.commit import FAILURES, Commit, CommitName, read_records
from pipeline.output.listing import Listing
from pipeline.output.records import SortedRecords, has_failed, list_records, read_matching
from pipeline.storage import Storage

SAMPLE_RECORDS = 1000
"""Largest number of records to read of all done shards, of those with rows that are not ok, and of failed shards."""
NOT_OK = "not ok"
"""Stands for every status except ok in counts that are taken from the names of records alone."""
NOT_READ = "its record was not read, because too many shards failed"


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The done and the failed shards of a run.

    Attributes:
        records: The names of all records, sorted.
        done: Names of the records that count, by shard. One that was read and found damaged does not count.
        failed: Errors of the shards that failed in all their attempts, by shard.
        counts: Rows by status over all done shards. Statuses except ok are counted together as `NOT_OK` if not every
            record of a shard with such rows was read.
        sample: The records that were read, at regular intervals; all of them if there are at most `SAMPLE_RECORDS`.
        not_ok: Statuses except ok among the rows of the records that were read, and the number of those records.
    """

    records: SortedRecords
    done: Mapping[str, CommitName]
    failed: Mapping[str, str]
    counts: Mapping[str, int]
    sample: Sequence[Commit]
    not_ok: tuple[Mapping[str, int], int]


def read_overview(out: Storage, fingerprint: str, listing: Listing | None) -> Overview:
    """List the records of OUT, and read at most three times `SAMPLE_RECORDS` of them.

    Args:
        out: OUT.
        fingerprint: Fingerprint of the run.
        listing: The listing of the run; None if it is unknown.
    """
    records = list_records(out, fingerprint, listing)
    sample, with_failures = _every_nth(records.done.values()), _every_nth(_not_all_ok(records.done.values()))
    commits, damaged = _read(out, [*sample, *with_failures])
    done = {shard: name for shard, name in records.done.items() if name.path not in damaged}
    counts, not_ok = _count(done.values(), commits)
    return Overview(
        records=records,
        done=done,
        failed=_read_failures(out, done, listing),
        counts=counts,
        sample=[commits[name.path] for name in sample if name.path in commits],
        not_ok=not_ok,
    )


def count_rows(out: Storage, names: Iterable[CommitName]) -> Counter[str]:
    """Count the rows of shards by status as in `Overview.counts`, reading at most `SAMPLE_RECORDS` records."""
    names = list(names)
    commits, damaged = _read(out, _every_nth(_not_all_ok(names)))
    return _count([name for name in names if name.path not in damaged], commits)[0]


def _count(
    names: Iterable[CommitName], commits: Mapping[str, Commit]
) -> tuple[Counter[str], tuple[Mapping[str, int], int]]:
    """Return the rows by status over all names, and those that are not ok among the records that were read."""
    names = list(names)
    failing = _not_all_ok(names)
    read = [commits[name.path] for name in failing if name.path in commits]
    seen: Counter[str] = Counter()
    for commit in read:
        seen.update({status: rows for status, rows in commit.counts.items() if status != "ok"})
    others = seen if len(read) == len(failing) else Counter({NOT_OK: sum(name.rows - name.ok for name in failing)})
    return +(Counter({"ok": sum(name.ok for name in names)}) + others), (+seen, len(read))


def _read(out: Storage, names: Iterable[CommitName]) -> tuple[dict[str, Commit], set[str]]:
    """Read records. Returns them by path, and the paths of those that do not count."""
    paths = list(dict.fromkeys(name.path for name in names))
    commits = read_matching(out, paths)
    return commits, set(paths) - commits.keys()


def _read_failures(out: Storage, done: Mapping[str, CommitName], listing: Listing | None) -> dict[str, str]:
    """Return the errors of the failed shards by name, in the order of their names."""
    paths = [path for path, _ in out.files(FAILURES)]
    read = paths[:SAMPLE_RECORDS]
    failed = {failure.shard: failure.error for failure in read_records(out, read).values()}
    failed |= {path.removeprefix(f"{FAILURES}/").removesuffix(".json"): NOT_READ for path in paths[len(read) :]}
    return {shard: error for shard, error in failed.items() if has_failed(shard, done, listing)}


def _not_all_ok(names: Iterable[CommitName]) -> list[CommitName]:
    return [name for name in names if name.ok < name.rows]


def _every_nth(names: Iterable[CommitName]) -> list[CommitName]:
    """Return at most `SAMPLE_RECORDS` of the names, at regular intervals."""
    names = list(names)
    return names[:: -(-len(names) // SAMPLE_RECORDS) or 1]
