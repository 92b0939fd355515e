"""The scores of the names that a text model gives to regions and segments of captioned scenes.

Segments are not matched to regions: a name is right or wrong. The possible names are given as a user gives them, either
the nouns of the visible classes or the whole vocabulary.

Axes: N images, F counts of an image, C classes of the vocabulary, K segments, H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffseg.attention.aggregate import average_cross_attention
from diffseg.images.canvas import ModelInput
from diffseg.method.naming import vote_names
from diffseg.method.signals import Signals
from diffseg.model.files import fingerprint
from diffseg.model.text import prompt_of_names
from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.evaluation.samples import Sample
from diffseg.tiny.evaluation.scoring import cached_scores
from diffseg.tiny.evaluation.tables import format_mean, markdown
from diffseg.tiny.scenes.captioned import visible_classes
from diffseg.tiny.scenes.vocabulary import NOUNS

__all__ = ["NamedImage", "Namer", "NamingRow", "count_names", "names_table", "score_naming", "summary"]

COUNTS = ("true regions", "named right", "by chance", "segments", "segments named right")
"""Counts of an image, which are summed over images."""
MAPS = ("segments and names", "cross-attention alone", "true names of the segments")
"""Maps of classes whose mIoU is computed."""
HEADINGS = ("true regions right", "segments right", "by chance", *(f"mIoU, {name}" for name in MAPS))
"""Names of the scores, in the order of `summary`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedImage:
    """The names that a model gave in an image, as classes.

    Attributes:
        region_classes: The class given to the true region of each visible class, in ascending order of visible classes.
        labels: Segments 0..K-1, uint16 [H, W].
        segment_classes: The class given to each segment, uint8 [K].
        pixel_classes: The class of each pixel from cross-attention alone, uint8 [H, W].
    """

    region_classes: Sequence[int]
    labels: np.ndarray
    segment_classes: np.ndarray
    pixel_classes: np.ndarray


class Namer:
    """A text model that names the regions and the segments of an image."""

    def __init__(self, model: Path, **settings: Any) -> None:
        """Load the checkpoint in the folder `model`, with settings of the segmenter."""
        self.segmenter = Segmenter.from_pretrained(model, naming=True, **settings)
        alone = self.segmenter.settings.with_values(method=("cross",))
        self.cross_only = Segmenter(self.segmenter.backbone, alone, naming=True)

    def __call__(self, image: np.ndarray, ground_truth: np.ndarray, classes: Sequence[int]) -> NamedImage:
        """Name the true regions and the segments of an image.

        Args:
            image: uint8 [H, W, 3].
            ground_truth: Classes, uint16 [H, W], whose regions are named.
            classes: Classes whose nouns are the possible names.
        """
        names = [NOUNS[c] for c in classes]
        model_input = self.segmenter.prepare(image, prompt_of_names(names))
        signals = self.segmenter.attention_of([model_input])
        assert signals.cross_attention is not None
        segmenters = (self.segmenter, self.cross_only)
        named, cross_only = (_result(segmenter, signals, model_input) for segmenter in segmenters)
        vote = self.segmenter.settings.segment_names.vote
        maps, _ = average_cross_attention(signals.cross_attention, include_coarsest=vote != "share")
        masks = np.stack([ground_truth == c for c in visible_classes(ground_truth)])[None].astype(np.float32)
        indices, _ = vote_names(torch.from_numpy(masks), maps, torch.tensor([len(names)]), vote)
        return NamedImage(
            region_classes=[classes[index] for index in indices[0].tolist()],
            labels=named.labels,
            segment_classes=_classes_of(named),
            pixel_classes=_classes_of(cross_only)[cross_only.labels],
        )


def _result(segmenter: Segmenter, signals: Signals, model_input: ModelInput) -> Segmentation:
    """Return the segmentation of one image, or raise the error of that image."""
    (result,) = segmenter.from_attention(signals, [model_input]).results()
    if isinstance(result, Exception):
        raise result
    return result


def _classes_of(result: Segmentation) -> np.ndarray:
    """Return the class of the name of each segment, uint8 [K]."""
    return np.array([NOUNS.index(segment.name or "") for segment in result.segments], np.uint8)


def count_names(named: NamedImage, ground_truth: np.ndarray, names: int) -> np.ndarray:
    """Return the counts of an image, which are summed over images.

    Args:
        named: Names that a model gave in the image.
        ground_truth: Classes of the image, integer [H, W].
        names: Number of possible names.

    Returns:
        float64 [F]: `COUNTS`, then for each of `MAPS` the pixels of the intersection and of the union of each class
        with its ground truth.
    """
    visible = visible_classes(ground_truth)
    count = int(named.labels.max()) + 1
    pairs = np.bincount(
        named.labels.ravel().astype(np.int64) * len(NOUNS) + ground_truth.ravel(), minlength=count * len(NOUNS)
    )
    # The true class of a segment is the class of most of its pixels.
    true_classes = pairs.reshape(count, len(NOUNS)).argmax(1)
    right = sum(given == c for given, c in zip(named.region_classes, visible, strict=True))
    counts = [len(visible), right, len(visible) / names, count, (true_classes == named.segment_classes).sum()]
    maps = [named.segment_classes[named.labels], named.pixel_classes, true_classes[named.labels]]
    return np.concatenate([counts, *(_areas(classes, ground_truth) for classes in maps)]).astype(np.float64)


def _areas(classes: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Return the pixels of the intersection and then of the union of each class in two maps, int64 [2 C]."""
    intersection = np.bincount(ground_truth[classes == ground_truth], minlength=len(NOUNS))
    areas = (np.bincount(labels.ravel(), minlength=len(NOUNS)) for labels in (ground_truth, classes))
    return np.concatenate([intersection, sum(areas) - intersection])


def summary(sums: np.ndarray) -> np.ndarray:
    """Return the scores of `HEADINGS` from summed counts, float64 [F]; mIoU is over the classes that occur."""
    regions, right, chance, segments, segments_right = sums[: len(COUNTS)]
    areas = sums[len(COUNTS) :].reshape(len(MAPS), 2, len(NOUNS))
    with np.errstate(invalid="ignore"):
        ious = np.nanmean(areas[:, 0] / areas[:, 1], axis=1)
    return np.array([right / regions, segments_right / segments, chance / regions, *ious])


@dataclass(frozen=True, kw_only=True)
class NamingRow:
    """The naming scores of one model with one list of possible names.

    Attributes:
        model: Name of the model.
        names: Possible names: "own", the nouns of the visible classes, or "all" with their number.
        scores: Scores by `HEADINGS`.
    """

    model: str
    names: str
    scores: dict[str, Interval]


def score_naming(
    models: Sequence[tuple[str, Path, dict[str, Any]]], samples: Sequence[Sample], folder: Path
) -> Iterator[NamingRow]:
    """Yield a row for each model and list of possible names.

    Args:
        models: For each model its name, its folder, and settings of the segmenter.
        samples: Samples of captioned scenes.
        folder: Folder of cached counts.
    """
    for title, model, settings in models:
        for names in ("own", f"all {len(NOUNS)}"):
            key = f"names {names} {fingerprint(model)} {settings_of(**settings)}"
            load = partial(_load_counter, model, settings, visible_only=names == "own")
            features = np.array(list(cached_scores(key, samples, load, folder)))
            yield NamingRow(
                model=title, names=names, scores=dict(zip(HEADINGS, bootstrap(features, summary), strict=True))
            )


def _load_counter(model: Path, settings: dict[str, Any], *, visible_only: bool) -> Callable[[Sample], list[float]]:
    """Return a function from a sample to its counts, where the possible names are those of visible classes, or all."""
    namer = Namer(model, **settings)

    def count(sample: Sample) -> list[float]:
        image, ground_truth = sample.load()
        classes = visible_classes(ground_truth) if visible_only else range(len(NOUNS))
        return count_names(namer(image, ground_truth, classes), ground_truth, len(classes)).tolist()

    return count


def names_table(rows: Sequence[NamingRow]) -> str:
    """Return the rows as a Markdown table."""
    table = [[f"{row.model}, {row.names}", *(format_mean(name, row.scores[name]) for name in HEADINGS)] for row in rows]
    return markdown(["model, names given", *HEADINGS], table)
