"""Which commit records of a run count. Planning, reading, `status` and `verify` all follow this rule.

A record counts if it is the only record of its shard and agrees with the listing of the run. If a shard has two
records, two workers have written its files, and the names of the records do not say whose files are there: neither
counts, and the next run labels the shard again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.output.commit import (
    FAILURES,
    FOLDER,
    Commit,
    CommitName,
    LabelShard,
    parse_name,
    read_records,
    settings_tag,
)
from pipeline.output.listing import Listing, read_listing
from pipeline.output.manifest import Manifest
from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True)
class SortedRecords:
    """The names of the records of OUT, each shard under one heading.

    Attributes:
        done: The record of each shard that is done.
        doubled: The records of each shard that has more than one.
        stale: The record of each shard that was labelled from another version of its input, or with other settings.
        gone: The records of each shard that is no longer in SRC.
    """

    done: Mapping[str, CommitName] = field(default_factory=dict)
    doubled: Mapping[str, list[CommitName]] = field(default_factory=dict)
    stale: Mapping[str, list[CommitName]] = field(default_factory=dict)
    gone: Mapping[str, list[CommitName]] = field(default_factory=dict)

    def of(self, shard: str) -> list[CommitName]:
        """Return all records of a shard."""
        if shard in self.done:
            return [self.done[shard]]
        return self.doubled.get(shard) or self.stale.get(shard) or self.gone.get(shard) or []


def sort_records(paths: Iterable[str], fingerprint: str, listing: Listing | None) -> SortedRecords:
    """Sort records by their paths alone.

    Args:
        paths: Paths below OUT; those that are no paths of records are left out.
        fingerprint: Fingerprint of the run.
        listing: The listing of the run; None if it is unknown, and then the versions of inputs are not compared.
    """
    names: defaultdict[str, list[CommitName]] = defaultdict(list)
    for path in paths:
        if name := parse_name(path):
            names[name.shard].append(name)
    done: dict[str, CommitName] = {}
    others: dict[str, dict[str, list[CommitName]]] = {"doubled": {}, "stale": {}, "gone": {}}
    for shard, records in names.items():
        if listing is not None and shard not in listing:
            others["gone"][shard] = records
        elif len(records) > 1:
            others["doubled"][shard] = records
        elif _counts(records[0], fingerprint, listing):
            done[shard] = records[0]
        else:
            others["stale"][shard] = records
    return SortedRecords(done=done, **others)


def list_records(out: Storage, fingerprint: str, listing: Listing | None) -> SortedRecords:
    """List the records of OUT and sort them. An empty file is no record."""
    paths = [path for path, size in out.files(FOLDER) if size]
    records = sort_records(paths, fingerprint, listing)
    doubled = [name.path for names in records.doubled.values() for name in names]
    # The listing of a store may lag behind, and still name a record that was deleted.
    deleted = {path for path, data in zip(doubled, out.read_small(doubled), strict=True) if data is None}
    return sort_records((path for path in paths if path not in deleted), fingerprint, listing) if deleted else records


def read_matching(out: Storage, paths: Sequence[str]) -> dict[str, Commit]:
    """Read records by path, without those that are missing, damaged, or lie at the path of another record.

    A record at the path of another one does not describe the files of its shard.
    """
    return {path: commit for path, commit in read_records(out, paths).items() if commit.path == path}


def has_failed(shard: str, labelled: Container[str], listing: Listing | None) -> bool:
    """Return whether the record of a failure counts: its shard was not labelled since, and is in SRC."""
    return shard not in labelled and (listing is None or shard in listing)


class RunCommits(NamedTuple):
    """The records of a run by shard name.

    Attributes:
        done: Shards whose record counts.
        failed: Shards that failed in all their attempts.
        records: The names of all records, sorted.
    """

    done: dict[LabelShard, Commit]
    failed: dict[str, Commit]
    records: SortedRecords


def read_run_commits(out: Storage, manifest: Manifest) -> RunCommits:
    """Read the records of OUT that count for the run of `manifest`. A damaged record does not count."""
    listing = read_listing(out, manifest.listing)
    records = list_records(out, manifest.fingerprint, listing)
    done = read_matching(out, [name.path for name in records.done.values()]).values()
    failures = read_records(out, [path for path, _ in out.files(FAILURES)]).values()
    commits = {LabelShard(commit.shard, commit.tag): commit for commit in done}
    failed = {failure.shard: failure for failure in failures if has_failed(failure.shard, commits, listing)}
    return RunCommits(done=commits, failed=failed, records=records)


def _counts(name: CommitName, fingerprint: str, listing: Listing | None) -> bool:
    if listing is None:
        return name.tag.startswith(settings_tag(fingerprint))
    return listing.accepts(name.shard, name.tag, fingerprint)
