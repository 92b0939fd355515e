"""How well the model that reads text names what it sees, beside chance and the same network with random weights.

Nothing is matched: a name is right or wrong. Scenes are captioned ones (diffseg.tiny.scenes.captioned); names are given as a
user gives labels of an image, either its own nouns or all of the vocabulary.

Axes: N images, F figures of each that are added up, C classes of the vocabulary.
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
from diffseg.method.naming import vote_names
from diffseg.model.files import fingerprint
from diffseg.model.text import prompt_of_names
from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.evaluation.samples import Sample
from diffseg.tiny.evaluation.scoring import kept_scores
from diffseg.tiny.evaluation.tables import markdown, number
from diffseg.tiny.scenes.captioned import visible_classes
from diffseg.tiny.scenes.vocabulary import NOUNS

__all__ = ["Named", "NamedRow", "Namer", "figures_of", "name_rows", "names_table", "summary"]

COUNTS = ("true regions", "named right", "by chance", "segments", "segments named right")
MAPS = ("segments and names", "cross-attention alone", "true names of the segments")
HEADINGS = ("true regions right", "segments right", "by chance", *(f"mIoU, {name}" for name in MAPS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """What a model made of an image.

    regions: for each class that shows, ascending, the class that its true region was called. labels: uint16 [H, W],
    segments 0..K-1, and segments: the class that each was called. alone: uint8 [H, W], by cross-attention alone.
    """

    regions: Sequence[int]
    labels: np.ndarray
    segments: np.ndarray
    alone: np.ndarray


class Namer:
    """A checkpoint that reads text, with its own settings."""

    def __init__(self, model: Path, **settings: Any) -> None:
        self.whole = Segmenter.from_pretrained(model, naming=True, **settings)
        self.alone = Segmenter(self.whole.backbone, settings_of(method=("cross",)), naming=True)

    def __call__(self, image: np.ndarray, truth: np.ndarray, classes: Sequence[int]) -> Named:
        """image: uint8 [H, W, 3]. truth: classes [H, W], whose regions are named. classes: what names may be given."""
        names = [NOUNS[c] for c in classes]
        canvas = self.whole.prepare(image, prompt_of_names(names))
        signals = self.whole.attention_of([canvas])
        assert signals.cross_attention is not None
        whole, alone = (_result(part, signals, canvas) for part in (self.whole, self.alone))
        maps, _ = average_cross_attention(signals.cross_attention, include_coarsest=False)
        shown = torch.from_numpy(np.stack([truth == c for c in visible_classes(truth)])[None].astype(np.float32))
        regions, _ = vote_names(shown, maps, torch.tensor([len(names)]), self.whole.settings.segment_names.vote)
        return Named(
            regions=[classes[index] for index in regions[0].tolist()],
            labels=whole.labels,
            segments=_classes_of(whole),
            alone=_classes_of(alone)[alone.labels],
        )


def _result(segmenter: Segmenter, signals: Any, canvas: Any) -> Segmentation:
    (result,) = segmenter.from_attention(signals, [canvas]).results()
    if isinstance(result, Exception):
        raise result
    return result


def _classes_of(result: Segmentation) -> np.ndarray:
    """The class of each segment, uint8 [K]."""
    return np.array([NOUNS.index(segment.name or "") for segment in result.segments], np.uint8)


def figures_of(named: Named, truth: np.ndarray, names: int) -> np.ndarray:
    """What is added up over images, float64 [F]: counts, then pixels of intersection and of union by class, by map.

    Args:
        named: of an image.
        truth: its classes, [H, W].
        names: how many were given.
    """
    shown = visible_classes(truth)
    count = int(named.labels.max()) + 1
    pairs = np.bincount(
        named.labels.ravel().astype(np.int64) * len(NOUNS) + truth.ravel(), minlength=count * len(NOUNS)
    )
    mostly = pairs.reshape(count, len(NOUNS)).argmax(1)
    right = sum(called == c for called, c in zip(named.regions, shown, strict=True))
    counts = [len(shown), right, len(shown) / names, count, (mostly == named.segments).sum()]
    maps = [named.segments[named.labels], named.alone, mostly[named.labels]]
    return np.concatenate([counts, *(_areas(classes, truth) for classes in maps)]).astype(np.float64)


def _areas(classes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels in which two maps of classes agree, and pixels in which either has a class, int64 [2 C]."""
    both = np.bincount(truth[classes == truth], minlength=len(NOUNS))
    either = (
        np.bincount(truth.ravel(), minlength=len(NOUNS)) + np.bincount(classes.ravel(), minlength=len(NOUNS)) - both
    )
    return np.concatenate([both, either])


def summary(sums: np.ndarray) -> np.ndarray:
    """Figures as in `HEADINGS`, from sums [F]: shares of what was named right, and mIoU over classes that occur."""
    regions, right, chance, segments, segments_right = sums[: len(COUNTS)]
    areas = sums[len(COUNTS) :].reshape(len(MAPS), 2, len(NOUNS))
    with np.errstate(invalid="ignore"):
        ious = np.nanmean(areas[:, 0] / areas[:, 1], axis=1)
    return np.array([right / regions, segments_right / segments, chance / regions, *ious])


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """Figures as in `HEADINGS` of a model that was given some names."""

    model: str
    names: str
    scores: dict[str, Interval]


def name_rows(
    models: Sequence[tuple[str, Path, dict[str, Any]]], samples: Sequence[Sample], folder: Path
) -> Iterator[NamedRow]:
    """Yield a row for each model and list of names. models: what it is called, its folder, settings of the segmenter.

    samples: captioned ones. folder: keeps what was scored.
    """
    for title, model, settings in models:
        for names in ("own", f"all {len(NOUNS)}"):
            key = f"names {names} {fingerprint(model)} {settings_of(**settings)}"
            load = partial(_scorer, model, settings, own=names == "own")
            features = np.array(list(kept_scores(key, samples, load, folder)))
            yield NamedRow(
                model=title, names=names, scores=dict(zip(HEADINGS, bootstrap(features, summary), strict=True))
            )


def _scorer(model: Path, settings: dict[str, Any], *, own: bool) -> Callable[[Sample], list[float]]:
    """From a sample to its figures, where the names given are those of what shows, or all."""
    namer = Namer(model, **settings)

    def score(sample: Sample) -> list[float]:
        image, truth = sample.load()
        classes = visible_classes(truth) if own else range(len(NOUNS))
        return figures_of(namer(image, truth, classes), truth, len(classes)).tolist()

    return score


def names_table(rows: Sequence[NamedRow]) -> str:
    """The rows in Markdown."""
    table = [[f"{row.model}, {row.names}", *(number(name, row.scores[name]) for name in HEADINGS)] for row in rows]
    return markdown(["model, names given", *HEADINGS], table)
