"""Score a label run against ground truth, a label shard after another, and all of it together.

One call scores a label shard, `score_part`; it knows neither Ray nor processes, and what it returns are numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffseg.scoring.baselines import BASELINES
from diffseg.scoring.overlap import Interval, Overlap, overlap
from diffseg.scoring.scores import ImageScores, named_scores, pooled, score_image
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE
from pipeline.evaluation.ground_truth import Maps, Truth, TruthPlace
from pipeline.evaluation.layouts import TruthError
from pipeline.evaluation.pairing import Pairing, RowPlace
from pipeline.executor.parallel import spread
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_images
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

THIS_RUN = "this run"
"""Names the run's own label maps among the methods; the others are those of `BASELINES`."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One image. scores: by method, those of the baselines where they were asked for. size: (height, width), pixels.

    named: pixels that the truth's classes share with those that segments are named by, where names are scored.
    """

    place: RowPlace
    key: str
    size: tuple[int, int]
    scores: Mapping[str, ImageScores]
    named: Overlap | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a row that has a truth has no scores (`truth`), or the baselines have none on its image (`image`)."""

    key: str
    what: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What every part of an evaluation is told. truth: without its places. image_field: of the run's SRC.

    classes: the truth's id of each name that segments have; {}: names are not scored.
    """

    out: Storage
    truth: Truth
    view: View
    image_field: str | None
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One label shard. truths: of its rows, by their numbers. source: the shard that was labelled, where it is known.

    for_baselines: numbers of the rows whose images the baselines segment.
    """

    shard: str
    truths: Mapping[int, TruthPlace]
    source: Shard | None
    for_baselines: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Figures of one method over `images` images, those whose truth says something; see `diffseg.scoring.scores`."""

    name: str
    images: int
    figures: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class NamedScores:
    """Of segments' names, with nothing matched: see `diffseg.scoring.scores.named_scores`. iou: by name."""

    images: int
    accuracy: Interval
    miou: Interval
    iou: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """methods: this run first. scored: images in the order of the run. problems: of those that could not be scored.

    named: where names are scored.
    """

    methods: list[Method]
    scored: list[Scored]
    problems: list[Problem]
    named: NamedScores | None = None


def make_parts(
    pairing: Pairing, truth: Truth, *, sources: Mapping[str, Shard], baseline_images: int, seed: int = 0
) -> list[Part]:
    """The work, by label shard.

    sources: the shards that were labelled, by name. baseline_images: the baselines get a sample of at most so many
    images, drawn with the seed.
    """
    places = sorted(pairing.pairs)
    drawn = np.random.default_rng(seed).permutation(len(places))[:baseline_images]
    sample = {places[i] for i in drawn}
    by_shard: defaultdict[str, list[RowPlace]] = defaultdict(list)
    for place in places:
        by_shard[place.shard].append(place)
    return [
        Part(
            shard=shard,
            truths={place.row: truth.places[pairing.pairs[place]] for place in there},
            source=sources.get(shard),
            for_baselines=frozenset(place.row for place in there if place in sample),
        )
        for shard, there in by_shard.items()
    ]


def evaluate(
    evaluator: Evaluator,
    parts: list[Part],
    *,
    processes: int,
    address: str | None = None,
    on_part: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score all parts, in so many processes or on the Ray cluster at the address, and pool what comes back."""
    scored: list[Scored] = []
    problems: list[Problem] = []
    for images, found in spread(score_part, evaluator, parts, processes=processes, address=address):
        scored += images
        problems += found
        on_part()
    count = evaluator.truth.layout.classes
    classes = None if count is None else range(count)
    methods = [_method(THIS_RUN, scored, THIS_RUN, classes)]
    sample = [one for one in scored if len(one.scores) > 1]
    if 0 < len(sample) < len(scored):
        methods.append(_method(f"{THIS_RUN}, images of the baselines", sample, THIS_RUN, classes))
    names = [name for name in BASELINES if sample and name in sample[0].scores]  # other nodes may lack scikit-image
    methods += [_method(name, sample, name, classes) for name in names]
    return Evaluation(methods=methods, scored=scored, problems=problems, named=_named(scored, evaluator.classes))


def _named(scored: list[Scored], classes: Mapping[str, int]) -> NamedScores | None:
    tables = [one.named for one in scored if one.named is not None and one.named.truth_area.sum()]
    if not tables:
        return None
    accuracy, miou, found = named_scores(tables, sorted(set(classes.values())))
    name_of = {number: name for name, number in reversed(list(classes.items()))}
    return NamedScores(
        images=len(tables), accuracy=accuracy, miou=miou, iou={name_of[number]: iou for number, iou in found.items()}
    )


def _method(title: str, scored: list[Scored], name: str, classes: range | None) -> Method:
    figures = pooled([one.scores[name] for one in scored], classes)
    return Method(name=title, images=figures["covering"].count if figures else 0, figures=figures)


def score_part(evaluator: Evaluator, part: Part) -> tuple[list[Scored], list[Problem]]:
    """Score one label shard's rows that have truths."""
    rows = {
        row["index"]: row
        for row in label_rows(evaluator.out, part.shard, ("key", "index", "mask", "segments"))
        if row["index"] in part.truths
    }
    images, problems = _images(evaluator, part, {number: rows[number]["key"] for number in part.for_baselines})
    scored: dict[int, Scored] = {}
    for number, truths in evaluator.truth.read(part.truths):
        key, labels = rows[number]["key"], decode_mask(rows[number]["mask"])
        maps = {THIS_RUN: labels}
        if number in images:
            maps |= {name: segment(images[number]) for name, segment in BASELINES.items()}
        try:
            if isinstance(truths, TruthError):
                raise truths
            _check_size(truths, labels, part.truths[number].name)
            scores = {name: score_image(truths, found, evaluator.view) for name, found in maps.items()}
        except TruthError as error:
            problems.append(Problem(key=key, what="truth", message=str(error)))
        else:
            named = _by_name(evaluator, truths, labels, rows[number]["segments"])
            scored[number] = Scored(
                place=RowPlace(part.shard, number), key=key, size=labels.shape, scores=scores, named=named
            )
    return [scored[number] for number in sorted(scored)], problems


def _by_name(evaluator: Evaluator, truths: Maps, labels: np.ndarray, segments: list[dict[str, Any]]) -> Overlap | None:
    """The truth beside the map of classes that the names of segments make; None where names are not scored."""
    if not evaluator.classes or len(truths) != 1:
        return None
    class_of = np.full(IGNORE + 1, IGNORE, dtype=np.uint16)
    for segment in segments:
        class_of[segment["id"]] = evaluator.classes.get(segment["name"], IGNORE)
    view = evaluator.view
    return overlap(view.of(truths[0]), view.of(class_of[labels]), ignore_truth=IGNORE)


def _check_size(truths: Maps, labels: np.ndarray, name: str) -> None:
    """Raises TruthError where a truth has another size than the label map."""
    for truth in truths:
        if truth.shape != labels.shape:
            (rows, columns), (height, width) = truth.shape, labels.shape
            turned = ". The image is turned by its EXIF orientation; turn the truth as well"
            raise TruthError(
                f"{name}: has {columns} x {rows} pixels, the label map {width} x {height}; expected the same"
                + (turned if (rows, columns) == (width, height) else "")
            )


def _images(evaluator: Evaluator, part: Part, keys: Mapping[int, str]) -> tuple[dict[int, np.ndarray], list[Problem]]:
    """Pixels by the numbers of rows, and why others have none."""
    if part.source is None or not keys:
        return {}, []
    read = dict(read_images(part.source, keys, evaluator.out, evaluator.image_field))
    problems = [Problem(key=keys[i], what="image", message=one) for i, one in read.items() if isinstance(one, str)]
    return {i: one for i, one in read.items() if not isinstance(one, str)}, problems
