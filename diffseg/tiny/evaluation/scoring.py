"""Scores of methods on samples: each image scored once and kept, then means, differences and their intervals.

Axes: N samples, S scores.
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
from diffseg.tiny.evaluation.samples import Choice, Sample, chosen

__all__ = [
    "SCORES",
    "Method",
    "Row",
    "Segment",
    "baseline_methods",
    "compare",
    "intervals",
    "kept_scores",
    "model_method",
    "scores_of",
]

SCORES = ("covering", "miou", "best_iou", "boundary_f", "accuracy", "segments", "seconds")
"""As in `diffseg.scoring.scores`, of whole images at their own size; then the number of segments, and seconds."""


Segment = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """key: says everything that its label maps follow from, but for the code.

    load: whatever takes a while before the first image; gives a function of uint8 [H, W, 3] to uint16 [H, W].
    """

    key: str
    load: Callable[[], Segment]


def baseline_methods() -> dict[str, Method]:
    """Those that need no model, by name."""

    def method(name: str) -> Method:
        segment = BASELINES[name]
        return Method(key=f"{name} {segment}", load=lambda: segment)

    return {name: method(name) for name in BASELINES}


def model_method(model: Path, **settings: Any) -> Method:
    """A checkpoint with settings of the segmenter."""

    def load() -> Segment:
        segmenter = Segmenter.from_pretrained(model, device="cpu", **settings)
        return lambda image: segmenter(image).labels

    return Method(key=f"{fingerprint(model)} {settings_of(**settings)}", load=load)


def scores_of(method: Method, samples: Sequence[Sample], folder: Path) -> Iterable[np.ndarray]:
    """Yield the scores of one sample after the other, float64 [S], kept in `folder`."""

    def load() -> Callable[[Sample], list[float]]:
        segment = method.load()
        return lambda sample: _score(segment, sample)

    return kept_scores(method.key, samples, load, folder)


def kept_scores(
    key: str, samples: Sequence[Sample], load: Callable[[], Callable[[Sample], list[float]]], folder: Path
) -> Iterator[np.ndarray]:
    """Yield the figures of one sample after the other, float64.

    key: says everything that they follow from, but for the samples and the code. load: whatever takes a while before
    the first sample; gives a function from a sample to its figures. folder: keeps them, a file for each key, so that
    what was scored before is not scored again. What depends on the code of this package is scored again when that
    changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(f'{_code()} {key}'.encode()).hexdigest()[:24]}.jsonl"
    kept = dict(_lines(path))
    score = None
    with path.open("a") as file:
        for sample in samples:
            if sample.key not in kept:
                score = score or load()
                kept[sample.key] = score(sample)
                file.write("\n" + json.dumps([sample.key, kept[sample.key]]))
                file.flush()
            yield np.array(kept[sample.key])


def _score(segment: Segment, sample: Sample) -> list[float]:
    image, truth = sample.load()
    start = time.perf_counter()
    labels = segment(image)
    seconds = time.perf_counter() - start
    scores = score_image([truth], labels, View())
    values = scores.values | {"segments": scores.segments, "seconds": seconds}
    return [float(values[name]) for name in SCORES]


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
    package = Path(__file__).parents[2]
    modules = sorted(path for path in package.rglob("*.py") if package / "tiny" not in path.parents)
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


def intervals(scores: np.ndarray) -> dict[str, Interval]:
    """The mean of each score, with its interval, of float64 [N, S]; samples without any truth are left out."""
    scored = scores[~np.isnan(scores).any(1)]
    means = bootstrap(scored, lambda sums: sums / len(scored))
    return dict(zip(SCORES, means, strict=True))


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of one method on one set: the mean of each score, and how much higher it is than the first method's.

    Differences are taken image by image, so their intervals are narrower than those of the means.
    """

    samples: str
    method: str
    scores: dict[str, Interval]
    gain: dict[str, Interval]


def compare(methods: Mapping[str, Sequence[Method]], choice: Choice, folder: Path) -> Iterator[Row]:
    """Yield a row for each set and method. methods: by name, variants of each, over which scores are averaged."""
    console = Console(stderr=True)
    for samples_name, samples in chosen(choice).items():
        first = None
        for name, variants in methods.items():
            runs = []
            for method in variants:
                scored = scores_of(method, samples, folder)
                told = f"{name} on {samples_name}"
                runs.append(np.array(list(track(scored, description=told, total=len(samples), console=console))))
            scores = np.mean(runs, axis=0)
            first = scores if first is None else first
            yield Row(samples=samples_name, method=name, scores=intervals(scores), gain=intervals(scores - first))
