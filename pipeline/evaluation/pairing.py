"""The rows of a run that there are to score, and which truth belongs to which: by path, or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.evaluation.ground_truth import Truth
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows
from pipeline.storage import SourceError, Storage


class RowPlace(NamedTuple):
    """Where a row of a run lies: its label shard, and its number there."""

    shard: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a run. ok: keys of those with a label map. failed: how many have which other status.

    shards_missing: how many shards failed or were never done.
    """

    ok: dict[RowPlace, str]
    failed: Counter[str]
    shards_missing: int


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """pairs: the key of each row's truth. rule: what of the keys was compared: all, or the last part.

    rows_alone, truths_alone: keys of those without the other. repeated: keys of rows that mean more than one row or
    more than one truth, and so are paired with none.
    """

    pairs: dict[RowPlace, str]
    rule: Literal["path", "name"]
    rows_alone: list[str]
    truths_alone: list[str]
    repeated: list[str]


def read_rows(out: Storage, manifest: Manifest) -> Rows:
    """Keys and statuses of all committed rows. Raises SourceError where there are none."""
    done = sorted(read_run_commits(out, manifest).done)
    if not done:
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to score")
    ok: dict[RowPlace, str] = {}
    failed: Counter[str] = Counter()
    for shard in done:
        for row in label_rows(out, shard, ("key", "index", "status")):
            if row["status"] == "ok":
                ok[RowPlace(shard, row["index"])] = row["key"]
            else:
                failed[row["status"]] += 1
    return Rows(ok=ok, failed=failed, shards_missing=max(0, manifest.shards - len(done)))


def pair(rows: Rows, truth: Truth) -> Pairing:
    """Pair rows with truths by whole keys, or by their last parts where these pair more.

    Raises SourceError, with keys of both sides, where no row has a truth.
    """
    common = truth.layout.pairing_key
    by_path = _paired(rows, truth, common)
    by_name = _paired(rows, truth, lambda key: common(key).rpartition("/")[2])
    rule: Literal["path", "name"] = "path" if len(by_path[0]) >= len(by_name[0]) else "name"
    pairs, repeated = by_path if rule == "path" else by_name
    if not pairs:
        repeated = by_path[1] | by_name[1]
        ours, theirs = (", ".join(map(repr, list(keys)[:3])) for keys in (rows.ok.values(), truth.places))
        raise SourceError(
            f"none of {len(rows.ok)} rows can be paired with one of {len(truth.places)} truths. Keys of rows: "
            f"{ours or 'none'}; of truths, layout {truth.layout_name}: {theirs}. Their last parts must agree but for "
            f"the extension, and be unique{'; these are not: ' + _first(repeated) if repeated else ''}"
        )
    used = set(pairs.values())
    return Pairing(
        pairs=pairs,
        rule=rule,
        rows_alone=[key for place, key in rows.ok.items() if place not in pairs and key not in repeated],
        truths_alone=[name for name in truth.places if name not in used],
        repeated=sorted(repeated),
    )


def _first(keys: set[str]) -> str:
    return ", ".join(map(repr, sorted(keys)[:3]))


def _paired(rows: Rows, truth: Truth, common: Callable[[str], str]) -> tuple[dict[RowPlace, str], set[str]]:
    """Truths by row, and keys of rows where there are several of either."""
    row_counts = Counter(map(common, rows.ok.values()))
    truth_counts = Counter(map(common, truth.places))
    truth_of = {common(name): name for name in truth.places}
    pairs, repeated = {}, set()
    for place, key in rows.ok.items():
        name = common(key)
        if name in truth_of and row_counts[name] == truth_counts[name] == 1:
            pairs[place] = truth_of[name]
        elif name in truth_of:
            repeated.add(key)
    return pairs, repeated
