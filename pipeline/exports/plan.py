"""What the tasks of an export depend on in all label shards together: file names, categories and source images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.segmentation import BACKGROUND
from pipeline.exports.items import UNNAMED, ExportTask
from pipeline.exports.names import name_hash, repeated
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.reader import is_uncertain, label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.source_images import MovedImages
from pipeline.readers.file_names import stem_of
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError, Storage


@dataclass(frozen=True, kw_only=True)
class ShardSurvey:
    """What file names and categories depend on, for one label shard.

    Attributes:
        shard: Name of the label shard.
        rows: Indices of the rows that have a label map, int [N].
        hashes: Hashes of their file names, uint64 [N].
        names: Names of their segments.
        found: Which of the given keys it has.
    """

    shard: LabelShard
    rows: np.ndarray
    hashes: np.ndarray
    names: frozenset[str]
    found: frozenset[str] = frozenset()


def done_shards(out: Storage, manifest: Manifest) -> dict[LabelShard, int]:
    """Return the number of rows of each done label shard, sorted by name.

    Raises:
        SourceError: The run has no done shard.
    """
    rows = {shard: commit.rows for shard, commit in read_run_commits(out, manifest).done.items()}
    if not rows:
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to export")
    return dict(sorted(rows.items()))


def survey_shard(out: Storage, shard: LabelShard, keys: Collection[str] = ()) -> ShardSurvey:
    """Read the keys and the segment names of a label shard, and look for these keys or stems in it."""
    rows, hashes = [], []
    names: set[str] = set()
    found: set[str] = set()
    for row in label_rows(out, shard, ("key", "index", "status", "segments")):
        if keys:
            found.update(key for key in (row["key"], stem_of(row["key"])) if key in keys)
        if row["status"] == "ok":
            rows.append(row["index"])
            hashes.append(name_hash(row["key"]))
            names.update(segment["name"] or UNNAMED for segment in row["segments"] if not is_uncertain(segment))
    names.discard(BACKGROUND)
    return ShardSurvey(
        shard=shard,
        rows=np.array(rows, int),
        hashes=np.array(hashes, np.uint64),
        names=frozenset(names),
        found=frozenset(found),
    )


def sources_of(out: Storage, shards: Iterable[LabelShard], sources: Mapping[str, Shard]) -> dict[str, Shard]:
    """Return the source shard of each label shard, as far as there is one.

    Image files of a folder that has changed are looked up by their keys, because its shards have other names now.
    """
    found: dict[str, Shard] = {}
    moved: MovedImages | None = None
    for name in shards:
        source = sources.get(name)
        if source is None:
            moved = moved or MovedImages(sources)
            source = moved.shard(name, [row["key"] for row in label_rows(out, name, ("key",))])
        if source is not None:
            found[name] = source
    return found


def make_tasks(
    shards: Mapping[LabelShard, int],
    surveys: Iterable[ShardSurvey],
    sources: Mapping[str, Shard],
    names: Sequence[str] = (),
) -> tuple[tuple[str, ...], list[ExportTask]]:
    """Return the categories, and one export task for each label shard.

    Args:
        shards: Number of rows of each label shard.
        surveys: The survey of each label shard.
        sources: Source shards by name; empty if the export includes no source images.
        names: The run's names. They become the first categories, so that category ids equal the rows' class ids.
    """
    by_shard = {survey.shard: survey for survey in surveys}
    repeated_hashes = repeated({name: survey.hashes for name, survey in by_shard.items()})
    segment_names = set().union(*(survey.names for survey in by_shard.values()))
    categories = [*names, *sorted(segment_names - set(names))] or [UNNAMED]
    tasks, first = [], 1
    for number, (shard, rows) in enumerate(shards.items()):
        survey = by_shard[shard]
        tasks.append(
            ExportTask(
                shard=shard,
                number=number,
                tasks=len(shards),
                first_id=first,
                renamed=frozenset(survey.rows[np.isin(survey.hashes, repeated_hashes)].tolist()),
                source=sources.get(shard),
            )
        )
        first += rows
    return tuple(categories), tasks
