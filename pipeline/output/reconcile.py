"""Brings OUT in line with SRC at the end of a run: no shard is missing, none counts twice, none is left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.output.commit import FAILURES, Commit, CommitName, read_records
from pipeline.output.fence import Fence, delete_label_shard
from pipeline.output.intents import list_intents, may_be_alive, withdraw
from pipeline.output.listing import Listing
from pipeline.output.ownership import is_label_shard
from pipeline.output.records import SortedRecords, list_records
from pipeline.output.verify import verify_commit
from pipeline.output.writer import LABELS_FOLDER
from pipeline.storage import Storage

NAMES_SHOWN = 5
"""Names of gone shards that a summary holds."""


@dataclass(frozen=True, kw_only=True)
class GoneShards:
    """Label shards whose source is no longer in SRC.

    Attributes:
        shards: Their number.
        rows: Number of their rows.
        first: Names of the first of them.
        removed: True if the run has removed them.
        reason: Why they were kept, "" if they were removed.
    """

    shards: int
    rows: int
    first: Sequence[str]
    removed: bool
    reason: str = ""

    @classmethod
    def of(cls, gone: Mapping[str, Sequence[CommitName]], *, reason: str = "") -> GoneShards | None:
        """Return the summary of gone shards; None if there are none. Without a reason they were removed."""
        if not gone:
            return None
        rows = sum(names[0].rows for names in gone.values())
        first = tuple(sorted(gone)[:NAMES_SHOWN])
        return cls(shards=len(gone), rows=rows, first=first, removed=not reason, reason=reason)


def check_records(
    out: Storage, listing: Listing, fingerprint: str, expected: Mapping[str, str]
) -> tuple[set[str], SortedRecords]:
    """Find the shards that this run holds for done and whose rows do not count, and delete their records.

    Another worker may have written such a shard since: one of a run that was paused before this run took over, or one
    that was given up when its node did not answer.

    Args:
        out: OUT.
        listing: The listing of the run.
        fingerprint: Fingerprint of the run.
        expected: Path of the record of each shard that earlier runs or this run have labelled, by name.

    Returns:
        The names of those shards, and the records as they were before.
    """
    records = list_records(out, fingerprint, listing)
    damaged = _damaged_shards(out, records)
    # The listing of a store may lag behind, so a record that it does not name is read.
    unlisted = {shard: path for shard, path in expected.items() if not records.of(shard)}
    present = read_records(out, list(unlisted.values()))
    undone = {shard for shard in expected if shard not in records.done and unlisted.get(shard) not in present}
    undone |= damaged & expected.keys()
    for shard in undone | damaged:
        for name in records.of(shard):
            out.delete(name.path)
    return undone, records


def _damaged_shards(out: Storage, records: SortedRecords) -> set[str]:
    """Return the shards with an intent whose files differ from their record, and delete the intents of dead workers."""
    damaged = set()
    for intent in list_intents(out):
        is_alive = may_be_alive(out, intent)
        if not is_alive:
            # Deleted before the files are compared. A worker that writes after the comparison declares it again.
            withdraw(out, intent)
        name = records.done.get(intent.shard)
        if name is None or (is_alive and intent.tag == name.tag):
            continue  # the shard is not done, or a run with the same listing is writing the same files again
        commit = read_records(out, [name.path]).get(name.path)
        if commit is None or not _is_whole(out, commit):
            damaged.add(intent.shard)
    return damaged


def _is_whole(out: Storage, commit: Commit) -> bool:
    return not verify_commit(out, commit)


def remove_gone(out: Storage, listing: Listing, fence: Fence) -> None:
    """Delete the records and then the files of the shards that are not in the listing.

    Args:
        out: OUT.
        listing: The complete listing of the run.
        fence: The fence of the run.

    Raises:
        RunTakenOver: Another run has taken over OUT, to which a shard may belong that is gone for this run.
    """
    records = list_records(out, fence.fingerprint, listing)
    for shard, names in records.gone.items():
        fence.check(out)
        for name in names:
            out.delete(name.path)
        delete_label_shard(out, shard)
    _remove_failures(out, listing)
    _remove_uncommitted(out, listing, fence)


def _remove_failures(out: Storage, listing: Listing) -> None:
    for failure in read_records(out, [path for path, _ in out.files(FAILURES)]).values():
        if failure.shard not in listing:
            out.delete(failure.path)


def _remove_uncommitted(out: Storage, listing: Listing, fence: Fence) -> None:
    """Delete the label shards without a record that an interrupted removal or a worker of another run has left."""
    for path, _ in out.files(LABELS_FOLDER):
        shard = path.removeprefix(f"{LABELS_FOLDER}/").removesuffix(".parquet")
        if "/" not in shard and shard not in listing and is_label_shard(out, path):
            fence.check(out)
            delete_label_shard(out, shard)
