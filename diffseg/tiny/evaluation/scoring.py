"""Scores of methods on samples, cached by image, with means, paired differences and their bootstrap intervals.

Axes: N samples, S scores, H, W image.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from diffseg.model.files import fingerprint
from diffseg.scoring.baselines import BASELINES
from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.scores import score_image
from diffseg.scoring.view import View
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.evaluation.samples import Sample, SampleChoice, sample_sets

__all__ = [
    "SCORES",
    "Method",
    "ScoreRow",
    "SegmentFunction",
    "baseline_methods",
    "cached_scores",
    "compare_methods",
    "method_scores",
    "model_method",
    "score_intervals",
]

SCORES = ("covering", "miou", "best_iou", "boundary_f", "accuracy", "segments", "seconds")
"""Scores of `diffseg.scoring.scores` on whole images at their original size, the number of segments, and seconds."""


SegmentFunction = Callable[[np.ndarray], np.ndarray]
"""A function from an image, uint8 [H, W, 3], to a label map, uint16 [H, W]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """A method of segmentation.

    Attributes:
        key: Describes everything that determines the label maps, except the code.
        load: Prepares the method, which may take a while, and returns its function.
    """

    key: str
    load: Callable[[], SegmentFunction]


def baseline_methods() -> dict[str, Method]:
    """Return the methods that need no model, by name."""

    def method(name: str) -> Method:
        segment = BASELINES[name]
        return Method(key=f"{name} {segment}", load=lambda: segment)

    return {name: method(name) for name in BASELINES}


def model_method(model: Path, **settings: Any) -> Method:
    """Return the method of a checkpoint with settings of the segmenter."""

    def load() -> SegmentFunction:
        segmenter = Segmenter.from_pretrained(model, device="cpu", **settings)
        return lambda image: segmenter(image).labels

    return Method(key=f"{fingerprint(model)} {settings_of(**settings)}", load=load)


def method_scores(method: Method, samples: Sequence[Sample], folder: Path) -> Iterable[np.ndarray]:
    """Yield the scores of each sample, float64 [S], from the cache in `folder` where possible."""

    def load() -> Callable[[Sample], list[float]]:
        segment = method.load()
        return lambda sample: _score(segment, sample)

    return cached_scores(method.key, samples, load, folder)


def cached_scores(
    key: str, samples: Sequence[Sample], load: Callable[[], Callable[[Sample], list[float]]], folder: Path
) -> Iterator[np.ndarray]:
    """Yield the scores of each sample, float64, from a cache where possible.

    Args:
        key: Describes everything that determines the scores, except the samples and the code.
        samples: Samples to score.
        load: Prepares the scoring, which may take a while, and returns a function from a sample to its scores. It is
            called only if a sample is not in the cache.
        folder: Folder of the cache, which has one file per key. A change to the code of `diffseg`, other than
            `diffseg.tiny`, invalidates the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(f'{_code_digest()} {key}'.encode()).hexdigest()[:24]}.jsonl"
    cache = dict(_read_cache(path))
    score = None
    with path.open("a") as file:
        for sample in samples:
            if sample.key not in cache:
                score = score or load()
                cache[sample.key] = score(sample)
                file.write("\n" + json.dumps([sample.key, cache[sample.key]]))
                file.flush()
            yield np.array(cache[sample.key])


def _score(segment: SegmentFunction, sample: Sample) -> list[float]:
    """Return the scores of one sample, in the order of `SCORES`."""
    image, ground_truth = sample.load()
    start = time.perf_counter()
    labels = segment(image)
    seconds = time.perf_counter() - start
    scores = score_image([ground_truth], labels, View())
    values = scores.values | {"segments": scores.segments, "seconds": seconds}
    return [float(values[name]) for name in SCORES]


def _read_cache(path: Path) -> Iterable[tuple[str, list[float]]]:
    """Yield cached scores with the keys of their samples; incomplete lines are ignored."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            key, scores = json.loads(line)
        except ValueError:
            continue
        yield key, scores


@cache
def _code_digest() -> str:
    """Return the digest of all modules that can affect a label map or a score."""
    package = Path(__file__).parents[2]
    modules = sorted(path for path in package.rglob("*.py") if package / "tiny" not in path.parents)
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


def score_intervals(scores: np.ndarray) -> dict[str, Interval]:
    """Return the mean and interval of each score from float64 [N, S]; samples without ground truth are ignored."""
    scored = scores[~np.isnan(scores).any(1)]
    means = bootstrap(scored, lambda sums: sums / len(scored))
    return dict(zip(SCORES, means, strict=True))


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The scores of one method on one set of samples.

    Attributes:
        samples: Name of the set.
        method: Name of the method.
        scores: Mean of each score.
        gain: Mean of the difference of each score from that of the first method. The differences are paired by image,
            so their intervals are narrower than those of the means.
    """

    samples: str
    method: str
    scores: dict[str, Interval]
    gain: dict[str, Interval]


def compare_methods(methods: Mapping[str, Sequence[Method]], choice: SampleChoice, folder: Path) -> Iterator[ScoreRow]:
    """Yield a row for each set and method.

    Args:
        methods: By name, the variants of each method, over which its scores are averaged.
        choice: Samples to score.
        folder: Folder of the cache.
    """
    console = Console(stderr=True)
    for samples_name, samples in sample_sets(choice).items():
        first = None
        for name, variants in methods.items():
            runs = []
            for method in variants:
                scored = method_scores(method, samples, folder)
                progress = track(scored, description=f"{name} on {samples_name}", total=len(samples), console=console)
                runs.append(np.array(list(progress)))
            scores = np.mean(runs, axis=0)
            first = scores if first is None else first
            gain = score_intervals(scores - first)
            yield ScoreRow(samples=samples_name, method=name, scores=score_intervals(scores), gain=gain)
