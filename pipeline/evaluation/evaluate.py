"""Score all label shards of a run against ground truth, and combine the scores of all images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from diffseg.scoring.baselines import BASELINES
from diffseg.scoring.bootstrap import Interval
from diffseg.scoring.protocols import Protocol, protocol_scores
from diffseg.scoring.scores import named_scores, pool_scores
from pipeline.evaluation.ground_truth import GroundTruth
from pipeline.evaluation.pairing import Pairing, RowLocation
from pipeline.evaluation.score import THIS_RUN, EvaluationContext, Problem, ScoredImage, ScoringTask, score_shard
from pipeline.executor.parallel import parallel_map
from pipeline.output.commit import LabelShard
from pipeline.readers.samples import Shard


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """Scores of one method over many images; `diffseg.scoring.scores` defines them.

    Attributes:
        name: Name of the method, or of the run.
        images: Number of images with at least one scored pixel.
        figures: Mean and interval by score.
        by_protocol: Accuracy and mIoU by the published protocol; None without one, or if it scores names and the method
            has none.
    """

    name: str
    images: int
    figures: Mapping[str, Interval]
    by_protocol: tuple[Interval, Interval] | None = None


@dataclass(frozen=True, kw_only=True)
class NamedScores:
    """Scores of segment names, without any matching; see `diffseg.scoring.scores.named_scores`.

    Attributes:
        images: Number of images.
        accuracy: Pixel accuracy.
        miou: Mean IoU over classes.
        iou: IoU by class name.
    """

    images: int
    accuracy: Interval
    miou: Interval
    iou: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LevelScores:
    """Scores of one level over the images of the baselines.

    Attributes:
        name: Text of the cut.
        figures: Mean and interval by score.
        segments: Mean number of segments.
    """

    name: str
    figures: Mapping[str, Interval]
    segments: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        methods: Scores by method, the run first.
        scored: Scored images in the order of the run.
        problems: Images that could not be scored, or not by the baselines.
        named: Scores of segment names; None if names are not scored.
        levels: Scores of the levels of a run with levels, in the order of the context.
    """

    methods: list[MethodScores]
    scored: list[ScoredImage]
    problems: list[Problem]
    named: NamedScores | None = None
    levels: list[LevelScores] = field(default_factory=list)


def make_tasks(
    pairing: Pairing,
    ground_truth: GroundTruth,
    *,
    sources: Mapping[str, Shard],
    baseline_images: int,
    seed: int = 0,
) -> list[ScoringTask]:
    """Return one scoring task for each label shard that has paired rows.

    Args:
        pairing: Which ground truth belongs to which row.
        ground_truth: The ground truth, with its locations.
        sources: Source shards by name.
        baseline_images: Maximum number of images that the baselines segment, drawn at random.
        seed: Seed of that draw.
    """
    rows = sorted(pairing.pairs)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:baseline_images]
    sample = {rows[i] for i in drawn}
    rows_by_shard: defaultdict[LabelShard, list[RowLocation]] = defaultdict(list)
    for row in rows:
        rows_by_shard[row.shard].append(row)
    return [
        ScoringTask(
            shard=shard,
            locations={row.row: ground_truth.locations[pairing.pairs[row]] for row in shard_rows},
            source=sources.get(shard),
            for_baselines=frozenset(row.row for row in shard_rows if row in sample),
        )
        for shard, shard_rows in rows_by_shard.items()
    ]


def evaluate(
    context: EvaluationContext,
    tasks: list[ScoringTask],
    *,
    processes: int,
    address: str | None = None,
    on_shard: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score all tasks and combine their results.

    Args:
        context: What the tasks share.
        tasks: The label shards to score.
        processes: Number of processes on this machine.
        address: Ray cluster to use instead of local processes.
        on_shard: Called after each label shard.
    """
    scored: list[ScoredImage] = []
    problems: list[Problem] = []
    for shard_images, shard_problems in parallel_map(score_shard, context, tasks, processes=processes, address=address):
        scored += shard_images
        problems += shard_problems
        on_shard()
    methods = [_method_scores(THIS_RUN, scored, THIS_RUN, context)]
    sample = [image for image in scored if len(image.scores) > 1]
    if 0 < len(sample) < len(scored):
        methods.append(_method_scores(f"{THIS_RUN}, images of the baselines", sample, THIS_RUN, context))
    # scikit-image, which some baselines need, may be missing on other nodes
    names = [name for name in BASELINES if sample and name in sample[0].scores]
    methods += [_method_scores(name, sample, name, context) for name in names]
    named = _named_scores(scored, context.classes)
    return Evaluation(
        methods=methods, scored=scored, problems=problems, named=named, levels=_level_scores(scored, context)
    )


def _level_scores(scored: list[ScoredImage], context: EvaluationContext) -> list[LevelScores]:
    count = context.ground_truth.layout.classes
    sample = [image for image in scored if image.levels]
    levels = []
    for name in map(str, (run_cut.cut for run_cut in context.levels if sample)):
        scores = [image.levels[name] for image in sample]
        figures = pool_scores(scores, None if count is None else range(count), once=False)
        levels.append(LevelScores(name=name, figures=figures, segments=float(np.mean([s.segments for s in scores]))))
    return levels


def _named_scores(scored: list[ScoredImage], classes: Mapping[str, int]) -> NamedScores | None:
    tables = [image.named for image in scored if image.named is not None and image.named.truth_area.sum()]
    if not tables:
        return None
    accuracy, miou, iou_by_class = named_scores(tables, sorted(set(classes.values())))
    class_names = {class_id: name for name, class_id in reversed(list(classes.items()))}
    return NamedScores(
        images=len(tables),
        accuracy=accuracy,
        miou=miou,
        iou={class_names[class_id]: iou for class_id, iou in iou_by_class.items()},
    )


def _method_scores(title: str, scored: list[ScoredImage], name: str, context: EvaluationContext) -> MethodScores:
    count = context.ground_truth.layout.classes
    scores = [image.scores[name] for image in scored]
    figures = pool_scores(scores, None if count is None else range(count), once=context.has_names)
    return MethodScores(
        name=title,
        images=figures["covering"].count if figures else 0,
        figures=figures,
        by_protocol=None if context.protocol is None else _protocol_scores(scored, name, context.protocol),
    )


def _protocol_scores(scored: list[ScoredImage], name: str, protocol: Protocol) -> tuple[Interval, Interval] | None:
    if protocol.matching == "names":
        tables = [image.named for image in scored if name == THIS_RUN]
    else:
        tables = [image.scores[name].table for image in scored]
    counted = [table for table in tables if table is not None and table.truth_area.sum()]
    return protocol_scores(counted, protocol) if counted else None
