"""Collect the rows of a run that can be scored, and pair each with its ground truth by path or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from pipeline.evaluation.ground_truth import GroundTruth
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.storage import SourceError, Storage


class RowLocation(NamedTuple):
    """Where a row of a run is stored: its label shard, and its index in that shard."""

    shard: LabelShard
    row: int


@dataclass(frozen=True, kw_only=True)
class RunRows:
    """Keys and statuses of the rows of a run.

    Attributes:
        ok: Keys of the rows that have a label map.
        failed: Number of the other rows by status.
        shards_missing: Number of shards that failed or were not labelled.
    """

    ok: dict[RowLocation, str]
    failed: Counter[str]
    shards_missing: int


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which ground truth belongs to which row.

    Attributes:
        pairs: Key of the ground truth of each row.
        rule: Which part of the keys was compared: the whole path, or its last component.
        unpaired_rows: Keys of rows without ground truth.
        unpaired_ground_truth: Keys of ground truth without a row.
        ambiguous_keys: Keys of rows that are not unique on either side, and therefore stay unpaired.
    """

    pairs: dict[RowLocation, str]
    rule: Literal["path", "name"]
    unpaired_rows: list[str]
    unpaired_ground_truth: list[str]
    ambiguous_keys: list[str]


def read_run_rows(out: Storage, manifest: Manifest) -> RunRows:
    """Read the keys and statuses of all rows of done shards.

    Raises:
        SourceError: The run has no done shard.
    """
    done = sorted(read_run_commits(out, manifest).done)
    if not done:
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to score")
    ok: dict[RowLocation, str] = {}
    failed: Counter[str] = Counter()
    for shard in done:
        for row in label_rows(out, shard, ("key", "index", "status")):
            if row["status"] == "ok":
                ok[RowLocation(shard, row["index"])] = row["key"]
            else:
                failed[row["status"]] += 1
    return RunRows(ok=ok, failed=failed, shards_missing=max(0, manifest.shards - len(done)))


def pair_rows(rows: RunRows, ground_truth: GroundTruth) -> Pairing:
    """Pair rows with ground truth by whole keys, or by their last path components if that pairs more of them.

    Raises:
        SourceError: No row has ground truth; the message shows keys of both sides.
    """
    common = ground_truth.layout.pairing_key
    by_path = _pair_by(rows, ground_truth, common)
    by_name = _pair_by(rows, ground_truth, lambda key: common(key).rpartition("/")[2])
    rule: Literal["path", "name"] = "path" if len(by_path[0]) >= len(by_name[0]) else "name"
    pairs, ambiguous = by_path if rule == "path" else by_name
    if not pairs:
        ambiguous = by_path[1] | by_name[1]
        row_keys, ground_truth_keys = _first_keys(rows.ok.values()), _first_keys(ground_truth.locations)
        repeated = f"; these are not: {_first_keys(sorted(ambiguous))}" if ambiguous else ""
        raise SourceError(
            f"none of {len(rows.ok)} rows can be paired with any of {len(ground_truth.locations)} ground-truth "
            f"maps. Row keys: {row_keys or 'none'}; ground-truth keys, layout {ground_truth.layout_name}: "
            f"{ground_truth_keys}. Their last components must be equal apart from the extension, and unique{repeated}"
        )
    used = set(pairs.values())
    return Pairing(
        pairs=pairs,
        rule=rule,
        unpaired_rows=[key for row, key in rows.ok.items() if row not in pairs and key not in ambiguous],
        unpaired_ground_truth=[key for key in ground_truth.locations if key not in used],
        ambiguous_keys=sorted(ambiguous),
    )


def _first_keys(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, islice(keys, 3)))


def _pair_by(
    rows: RunRows, ground_truth: GroundTruth, common: Callable[[str], str]
) -> tuple[dict[RowLocation, str], set[str]]:
    """Return the ground-truth key of each row, and the keys of rows that are not unique on either side."""
    row_counts = Counter(map(common, rows.ok.values()))
    ground_truth_counts = Counter(map(common, ground_truth.locations))
    ground_truth_key = {common(key): key for key in ground_truth.locations}
    pairs, ambiguous = {}, set()
    for location, key in rows.ok.items():
        name = common(key)
        if name in ground_truth_key and row_counts[name] == ground_truth_counts[name] == 1:
            pairs[location] = ground_truth_key[name]
        elif name in ground_truth_key:
            ambiguous.add(key)
    return pairs, ambiguous
