"""Scores of methods on samples: each image scored once and kept, then means, differences and their intervals.

Axes: N samples, S scores.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffseg.baselines import BASELINES
from diffseg.decide import IGNORE
from diffseg.layout import fingerprint
from diffseg.metrics import Interval, bootstrap_mean, covering, match_per_image, mean_best_iou, overlap
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.samples import Sample

__all__ = ["SCORES", "Method", "baseline_methods", "difference", "intervals", "model_method", "scores_of"]

SCORES = ("covering", "miou", "best_iou", "accuracy", "segments", "seconds")
"""Shares in [0, 1], but for the number of segments and the seconds of an image; miou and accuracy are of a matching of
segments to regions for this image alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """name: in a table. key: says everything that its label maps follow from, but for the code. segment: uint8 [H, W, 3]
    to uint16 [H, W].
    """

    name: str
    key: str
    segment: Callable[[np.ndarray], np.ndarray]


def baseline_methods() -> list[Method]:
    """Those that need no model."""
    return [Method(name=name, key=f"{name} {method!r}", segment=method) for name, method in BASELINES.items()]


def model_method(name: str, model: Path, **settings: Any) -> Method:
    """A checkpoint with settings of the segmenter; it is loaded when the first image asks for it."""
    loaded = cache(lambda: Segmenter.from_pretrained(model, device="cpu", **settings))
    return Method(
        name=name,
        key=f"{fingerprint(model)} {settings_of(**settings)}",
        segment=lambda image: loaded()(image).labels,
    )


def scores_of(method: Method, samples: Sequence[Sample], folder: Path) -> Iterable[np.ndarray]:
    """Yield the scores of one sample after the other, float64 [S].

    folder: keeps them, a file for each method, so that what was scored before is not scored again. What depends on the
    code of this package is scored again when that changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(f'{_code()} {method.key}'.encode()).hexdigest()[:24]}.jsonl"
    kept = dict(_lines(path))
    with path.open("a") as file:
        for sample in samples:
            if sample.key not in kept:
                kept[sample.key] = _score(method, sample)
                file.write("\n" + json.dumps([sample.key, kept[sample.key]]))
                file.flush()
            yield np.array(kept[sample.key])


def _score(method: Method, sample: Sample) -> list[float]:
    image, truth = sample.load()
    start = time.perf_counter()
    labels = method.segment(image)
    seconds = time.perf_counter() - start
    table = overlap(truth, labels, ignore_truth=IGNORE)
    matching = match_per_image(table)
    values = (covering(table), matching.miou, mean_best_iou(table), matching.accuracy, len(table.segment_ids), seconds)
    return [float(value) for value in values]


def _lines(path: Path) -> Iterable[tuple[str, list[float]]]:
    """What was kept; a line that was cut off when its writer ended is none."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            key, scores = json.loads(line)
        except ValueError:
            continue
        yield key, scores


@cache
def _code() -> str:
    """Digest of the modules that a label map or a score can follow from."""
    package = Path(__file__).parents[1]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.glob("*.py")))).hexdigest()


def intervals(scores: np.ndarray) -> dict[str, Interval]:
    """The mean of each score, with its interval, of float64 [N, S]."""
    return {name: bootstrap_mean(column) for name, column in zip(SCORES, scores.T, strict=True)}


def difference(scores: np.ndarray, others: np.ndarray) -> dict[str, Interval]:
    """How much higher `scores` are than `others` of the same images, image by image, both float64 [N, S]."""
    return intervals(scores - others)
