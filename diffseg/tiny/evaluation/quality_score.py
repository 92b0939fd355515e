"""Measure the score of quality without ground truth: `python -m diffseg.tiny.evaluation.quality_score`.

Each image is labelled by the default method and by the stage covariance, all from the same passes. The scores of its
label map are compared with its true covering and mIoU: confidence, the gap between `within_rho` and `between_rho`
(`diffseg.variants.correlation`), and both together.

Axes: N images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from scipy.stats import rankdata

from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.scores import score_image
from diffseg.scoring.view import View
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.evaluation.reliability import Predictions, measure_reliability
from diffseg.tiny.evaluation.samples import Sample, SampleChoice, sample_sets
from diffseg.tiny.evaluation.tables import format_difference, format_mean, markdown
from diffseg.tiny.recipe.export import CHECKPOINT

__all__ = ["MEASURES", "METHODS", "ImageScores", "QualityScore", "image_scores", "rows_of_set", "segmenters"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "covariance,par": {"method": "covariance,par"},
    "covariance,par, as many segments as diffseg finds": {
        "method": "covariance,par",
        "covariance_segments": "diffseg",
    },
}
"""Settings by the name of the method. None of them changes the passes."""
TRUTHS = ("covering", "miou")
"""Scores with ground truth that the others are compared with."""
MEASURES = ("rank correlation", "surer half")
"""Measures of `diffseg.tiny.evaluation.reliability` that need no scale: Spearman's correlation, and by how much the
mean of the better half of the images exceeds that of all."""


@dataclass(frozen=True, kw_only=True)
class QualityScore:
    """Compare confidence and the score without ground truth with the true quality of whole images.

    Attributes:
        samples: Images to segment.
        model: Folder in the layout of the embedded checkpoint.
        variants: Variants of each image.
        threads: Threads of torch.
        out: Folder for quality-score.md and quality-score.json.
    """

    samples: tyro.conf.OmitArgPrefixes[SampleChoice] = field(default_factory=SampleChoice)
    model: Path = CHECKPOINT
    variants: int = 16
    threads: int = 1
    out: Path = Path("tiny-eval")


class ImageScores(NamedTuple):
    """Scores of the label map of one image, with and without ground truth.

    Attributes:
        confidence: Its confidence, 0 to 1.
        within: Its `within_rho`; 0 if it has none.
        between: Its `between_rho`; 0 if it has none, because it has one segment.
        segments: Number of its segments.
        covering: Covering of the true regions, 0 to 1.
        miou: Mean IoU of the true regions with the segments that are matched to them, 0 to 1.
    """

    confidence: float
    within: float
    between: float
    segments: int
    covering: float
    miou: float


class QualityRow(NamedTuple):
    """How well one score without ground truth predicts one with it, on one set.

    Attributes:
        samples: Name of the set.
        score: Name of the score without ground truth.
        truth: One of `TRUTHS`.
        measures: By `MEASURES`.
    """

    samples: str
    score: str
    truth: str
    measures: dict[str, Interval]


def segmenters(model: Path, **settings: Any) -> dict[str, Segmenter]:
    """Return a segmenter for each of `METHODS`, with the same model."""
    first = Segmenter.from_pretrained(model, quality=True, **settings)
    return {
        name: Segmenter(first.backbone, settings_of(**settings, **changes), quality=True)
        for name, changes in METHODS.items()
    }


def image_scores(methods: Mapping[str, Segmenter], samples: Sequence[Sample]) -> Iterator[dict[str, ImageScores]]:
    """Yield the scores of each image that has ground truth, by method; all methods share the passes of the first."""
    first = next(iter(methods.values()))
    for sample in track(samples, description="segmenting", console=Console(stderr=True)):
        image, ground_truth = sample.load()
        inputs = [first.prepare(image)]
        signals, scores = first.attention_of(inputs), {}
        for name, segmenter in methods.items():
            (found,) = segmenter.from_attention(signals, inputs).results()
            if isinstance(found, Exception):
                raise found
            true = score_image([ground_truth], found.labels, View()).values
            scores[name] = ImageScores(
                confidence=found.confidence,
                within=found.within_rho or 0.0,
                between=found.between_rho or 0.0,
                segments=len(found.segments),
                covering=true["covering"],
                miou=true["miou"],
            )
        if np.isfinite([*scores.values()]).all():
            yield scores


def rows_of_set(name: str, scores: Sequence[ImageScores]) -> list[QualityRow]:
    """Return the rows of one set of images."""
    confidence, within, between, _, *true = np.array(scores).T
    gap = within - between
    predictors = {
        "confidence": confidence,
        "within_rho − between_rho": gap,
        "within_rho": within,
        "−between_rho": -between,
        "both: mean rank of confidence and the gap": rankdata(confidence) + rankdata(gap),
    }
    rows = []
    for truth, quality in zip(TRUTHS, true, strict=True):
        for score, predictor in predictors.items():
            predictions = Predictions(confidence=predictor, quality=quality, image=np.arange(len(scores)))
            figures = measure_reliability(predictions)
            rows.append(QualityRow(name, score, truth, {measure: figures[measure] for measure in MEASURES}))
    return rows


def report(rows: Sequence[QualityRow]) -> str:
    """Return a Markdown table for each set."""
    parts: list[str] = []
    correlation, gain = MEASURES
    for samples in dict.fromkeys(row.samples for row in rows):
        of_set = [row for row in rows if row.samples == samples]
        table = []
        for score in dict.fromkeys(row.score for row in of_set):
            cells = [score]
            for row in (row for row in of_set if row.score == score):
                cells.append(format_mean(correlation, row.measures[correlation]))
                cells.append(format_difference(gain, row.measures[gain]))
            table.append(cells)
        header = ["score", *(f"{truth}: {measure}" for truth in TRUTHS for measure in MEASURES)]
        parts += [f"### {samples}", markdown(header, table)]
    return "\n\n".join(parts)


def methods_table(scores: Sequence[Mapping[str, ImageScores]]) -> str:
    """Return a Markdown table of the methods' mean scores, with the paired differences from the first one."""
    table: list[list[str]] = []
    names = ImageScores._fields
    first = np.array([next(iter(of_image.values())) for of_image in scores])
    for method in scores[0]:
        values = np.array([of_image[method] for of_image in scores])
        gains = bootstrap(values - first, lambda sums: sums / len(scores))
        cells = [method]
        for name, mean, gain in zip(names, values.mean(axis=0), gains, strict=True):
            difference = f" ({format_difference(name, gain)})" if name in TRUTHS and len(table) else ""
            cells.append(f"{mean:.3f}{difference}")
        table.append(cells)
    return markdown(["method", *names], table)


def main(settings: QualityScore) -> None:
    """Print the tables, and write them and the scores of the images into the folder."""
    torch.set_num_threads(settings.threads)
    methods = segmenters(settings.model, variants=settings.variants)
    scores = {name: list(image_scores(methods, samples)) for name, samples in sample_sets(settings.samples).items()}
    parts = []
    for name, of_set in scores.items():
        rows = rows_of_set(name, [of_image["default"] for of_image in of_set])
        parts += [report(rows), methods_table(of_set)]
    text = "\n\n".join(parts)
    print(text)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "quality-score.md").write_text(text + "\n")
    images = {
        name: [{method: of_method._asdict() for method, of_method in of_image.items()} for of_image in of_set]
        for name, of_set in scores.items()
    }
    plain = {"settings": asdict(settings), "images": images}
    (settings.out / "quality-score.json").write_text(json.dumps(plain, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(QualityScore))
