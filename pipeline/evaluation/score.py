"""Score one label shard against ground truth; `evaluate.py` does so for all shards of a run.

`score_shard` does not depend on Ray or on processes, and returns scores rather than label maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from diffseg.levels import groups_after, leaf_map, merges_of
from diffseg.scoring.baselines import BASELINES
from diffseg.scoring.overlap import Overlap, overlap
from diffseg.scoring.protocols import Protocol
from diffseg.scoring.scores import ImageScores, score_image
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE
from pipeline.evaluation.decoders import GroundTruthError
from pipeline.evaluation.ground_truth import GroundTruth, GroundTruthLocation, LabelMaps
from pipeline.evaluation.pairing import RowLocation
from pipeline.output.commit import LabelShard
from pipeline.output.levels import LEVEL_COLUMNS, RunCut, stored_levels
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_source_images
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

THIS_RUN = "this run"
"""Method name of the run's own label maps; the other methods are those of `BASELINES`."""


class SegmentName(NamedTuple):
    """The name of a segment in a row.

    Attributes:
        id: Its label.
        name: The name; None if it has none.
        score: Score of the name, 0 to 1.
    """

    id: int
    name: str | None
    score: float


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """Scores of one image.

    Attributes:
        location: Where the row is stored.
        key: Key of the sample.
        size: Height and width of the label map, in pixels.
        scores: Scores by method; baselines are included for the sample of images that they segment.
        named: Pixels that ground-truth classes share with the classes that segments are named by, if names are scored.
        levels: Scores at `EvaluationContext.levels` by the text of the cut, for the images of the baselines.
        names: The names of the segments, if names are scored.
    """

    location: RowLocation
    key: str
    size: tuple[int, int]
    scores: Mapping[str, ImageScores]
    named: Overlap | None = None
    levels: Mapping[str, ImageScores] = field(default_factory=dict)
    names: Sequence[SegmentName] = ()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an image could not be scored, or not by the baselines.

    Attributes:
        key: Key of the sample.
        what: `truth` if its ground truth is unusable, `image` if the source image cannot be read.
        message: The reason.
    """

    key: str
    what: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """What all scoring tasks of an evaluation share.

    Attributes:
        out: OUT of the run.
        ground_truth: How ground truth is read; without its locations, which the tasks carry.
        view: The pixels that are scored.
        image_field: Image field of the run's SRC.
        classes: Ground-truth class id by segment name; empty if names are not scored.
        has_names: True if the run names its segments. Without names an id means nothing beyond its image.
        unnamed: Class of segments whose name is not in `classes`; 65535 for none.
        protocol: Published protocol whose accuracy and mIoU are computed too; its view is `view`.
        levels: Levels of a run with levels that are scored too, on the images of the baselines.
    """

    out: Storage
    ground_truth: GroundTruth
    view: View
    image_field: str | None
    classes: Mapping[str, int] = field(default_factory=dict)
    has_names: bool = False
    unnamed: int = IGNORE
    protocol: Protocol | None = None
    levels: tuple[RunCut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """The rows of one label shard that are scored together.

    Attributes:
        shard: Name of the label shard.
        locations: Location of the ground truth by row index.
        source: Source shard with the images; None if it was not found.
        for_baselines: Indices of the rows whose images the baselines segment, and that are scored at other levels.
    """

    shard: LabelShard
    locations: Mapping[int, GroundTruthLocation]
    source: Shard | None
    for_baselines: frozenset[int]


def score_shard(context: EvaluationContext, task: ScoringTask) -> tuple[list[ScoredImage], list[Problem]]:
    """Score the rows of one label shard that have ground truth."""
    columns = ["key", "index", "height", "width", "mask", "segments", *(LEVEL_COLUMNS if context.levels else ())]
    rows = {row["index"]: row for row in label_rows(context.out, task.shard, columns) if row["index"] in task.locations}
    images, problems = _read_images(context, task, {number: rows[number] for number in task.for_baselines})
    scored: dict[int, ScoredImage] = {}
    for number, ground_truth in context.ground_truth.read(task.locations):
        row, location = rows[number], RowLocation(task.shard, number)
        try:
            if isinstance(ground_truth, GroundTruthError):
                raise ground_truth
            name = task.locations[number].name
            scored[number] = _score_row(context, location, row, ground_truth, name, images.get(number))
            if context.levels and number in task.for_baselines:
                scored[number] = replace(scored[number], levels=_score_levels(context, row, ground_truth))
        except GroundTruthError as error:
            problems.append(Problem(key=row["key"], what="truth", message=str(error)))
    return [scored[number] for number in sorted(scored)], problems


def _score_row(
    context: EvaluationContext,
    location: RowLocation,
    row: Mapping[str, Any],
    ground_truth: LabelMaps,
    name: str,
    image: np.ndarray | None,
) -> ScoredImage:
    """Score one label map, and the baselines if their image is given."""
    labels = decode_mask(row["mask"])
    _check_size(ground_truth, labels, name)
    maps = {THIS_RUN: labels}
    if image is not None:
        maps |= {method: segment(image) for method, segment in BASELINES.items()}
    return ScoredImage(
        location=location,
        key=row["key"],
        size=labels.shape,
        scores={method: score_image(ground_truth, prediction, context.view) for method, prediction in maps.items()},
        named=_overlap_of_names(context, ground_truth, labels, row["segments"]),
        names=_names_of(row["segments"]) if context.classes else (),
    )


def _names_of(segments: list[dict[str, Any]]) -> list[SegmentName]:
    """Return the names of a row's segments. Where a name was proposed itself, its score is 1."""
    return [
        SegmentName(segment["id"], segment["name"], 1.0 if segment["name_score"] is None else segment["name_score"])
        for segment in segments
    ]


def _score_levels(
    context: EvaluationContext, row: Mapping[str, Any], ground_truth: LabelMaps
) -> dict[str, ImageScores]:
    """Score a row at each cut; cuts that give the same label map are scored once."""
    levels = stored_levels(row)
    leaves = leaf_map(levels, decode_mask(row["mask"]))
    areas = np.bincount(leaves[leaves != IGNORE], minlength=levels.leaves)
    by_merges: dict[int, ImageScores] = {}
    scores = {}
    for run_cut in context.levels:
        merges = merges_of(levels, run_cut.cut, run_cut.threshold, areas)
        if merges not in by_merges:
            table = np.full(IGNORE + 1, IGNORE, np.uint16)
            table[: levels.leaves] = groups_after(levels, merges)[0]
            by_merges[merges] = score_image(ground_truth, table[leaves], context.view)
        scores[str(run_cut.cut)] = by_merges[merges]
    return scores


def _overlap_of_names(
    context: EvaluationContext, ground_truth: LabelMaps, labels: np.ndarray, segments: list[dict[str, Any]]
) -> Overlap | None:
    """Return the overlap of ground truth and named classes; None if names are not scored."""
    if not context.classes or len(ground_truth) != 1:
        return None
    class_of = np.full(IGNORE + 1, IGNORE, dtype=np.uint16)
    for segment in segments:
        class_of[segment["id"]] = context.classes.get(segment["name"], context.unnamed)
    view = context.view
    return overlap(view.apply(ground_truth[0]), view.apply(class_of[labels]), ignore_truth=IGNORE)


def _check_size(ground_truth: LabelMaps, labels: np.ndarray, name: str) -> None:
    """Raise GroundTruthError if an annotator's map and the label map differ in size."""
    for annotation in ground_truth:
        if annotation.shape != labels.shape:
            (rows, columns), (height, width) = annotation.shape, labels.shape
            rotated = ". The image is rotated by its EXIF orientation; rotate the ground truth as well"
            raise GroundTruthError(
                f"{name}: has {columns} x {rows} pixels, the label map {width} x {height}; expected the same"
                + (rotated if (rows, columns) == (width, height) else "")
            )


def _read_images(
    context: EvaluationContext, task: ScoringTask, rows: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[int, np.ndarray], list[Problem]]:
    """Return the pixels of source images by row index, and the images that cannot be read."""
    if task.source is None or not rows:
        return {}, []
    keys = {number: row["key"] for number, row in rows.items()}
    sizes = {number: (row["height"], row["width"]) for number, row in rows.items()}
    images = dict(read_source_images(task.source, keys, context.out, context.image_field, sizes))
    problems = [
        Problem(key=keys[number], what="image", message=image)
        for number, image in images.items()
        if isinstance(image, str)
    ]
    return {number: image for number, image in images.items() if not isinstance(image, str)}, problems
