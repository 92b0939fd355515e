"""Measure how well confidence predicts quality: `python -m diffseg.tiny.evaluation.reliability`.

The quality of a segment is its best intersection over union with a true region, and the quality of an image is its
covering. Besides the confidence that a label run records, this module measures alternatives that can be computed from
what a run records.

Axes: S segments or images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from scipy.stats import rankdata

from diffseg.drawing.plot import COLOURS, INK, can_draw, new_figure, save_figure, style_axes
from diffseg.scoring.bootstrap import Interval
from diffseg.scoring.overlap import covering, overlap
from diffseg.segmentation import IGNORE, Segmentation
from diffseg.segmenter import Segmenter
from diffseg.tiny.evaluation.samples import Sample, SampleChoice, sample_sets
from diffseg.tiny.evaluation.tables import format_difference, format_mean, markdown
from diffseg.tiny.recipe.export import CHECKPOINT

__all__ = ["FIGURES", "GOOD", "Predictions", "Reliability", "measure_quality", "measure_reliability"]

GOOD = 0.5
"""IoU from which a segment counts as good, the threshold of detection benchmarks."""
BINS = 10
"""Number of bins of the calibration error."""
ROUNDS = 500
"""Resamples of the bootstrap."""

FIGURES = ("rank correlation", "AUC", "calibration error", "surer half")
"""Names of the measures.

Rank correlation is Spearman's, between confidence and quality. AUC is the probability that the confidence of a good
segment is higher than that of another segment. The calibration error is the mean distance between confidence and
quality in bins of equal counts. The surer half is the half with the higher confidence; its measure is by how much its
mean quality exceeds the mean quality of all.
"""

CONFIDENCES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "segments: confidence": lambda confidence, area: confidence,
    "segments: confidence · area^0.25": lambda confidence, area: confidence * area**0.25,
    "segments: confidence · area^0.5": lambda confidence, area: confidence * area**0.5,
}
"""Confidences by name, as functions of the recorded confidence and of the area as a share of the image."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Compare confidence with quality, for segments and for whole images, with 95 % intervals.

    Attributes:
        samples: Images to segment.
        model: Folder in the layout of the embedded checkpoint.
        threads: Threads of torch.
        out: Folder for reliability.md, reliability.json and the plot reliability.png.
    """

    samples: tyro.conf.OmitArgPrefixes[SampleChoice] = field(default_factory=SampleChoice)
    model: Path = CHECKPOINT
    threads: int = 1
    out: Path = Path("tiny-eval")


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predicted confidence and measured quality of segments, or of images.

    Attributes:
        confidence: float64 [S] in [0, 1].
        quality: IoU or covering, float64 [S] in [0, 1].
        image: Index of the image that each belongs to, int [S].
    """

    confidence: np.ndarray
    quality: np.ndarray
    image: np.ndarray

    def bins(self) -> list[tuple[float, float]]:
        """Return mean confidence and mean quality in bins of equal counts, in ascending order of confidence."""
        parts = np.array_split(np.argsort(self.confidence, kind="stable"), min(BINS, len(self.confidence)))
        return [(float(self.confidence[part].mean()), float(self.quality[part].mean())) for part in parts]


@dataclass(frozen=True, kw_only=True)
class ReliabilityRow:
    """The reliability of one kind of confidence on one set of samples.

    Attributes:
        samples: Name of the set.
        kind: Name of the confidence: a key of `CONFIDENCES`, or "images".
        count: Number of segments or images.
        quality: Mean quality.
        figures: Measures by `FIGURES`.
        bins: Mean confidence and mean quality of each bin, see `Predictions.bins`.
    """

    samples: str
    kind: str
    count: int
    quality: float
    figures: dict[str, Interval]
    bins: list[tuple[float, float]]


def measure_quality(
    segmenter: Callable[[np.ndarray], Segmentation], samples: Sequence[Sample]
) -> dict[str, Predictions]:
    """Return the predictions for segments by each of `CONFIDENCES`, and for images.

    Images without any ground truth are left out, and so are segments that lie wholly where the ground truth is ignored,
    of which nothing is known.
    """
    segments: list[tuple[float, float, float, int]] = []
    images: list[tuple[float, float, int]] = []
    for index, sample in enumerate(track(samples, description="segmenting", console=Console(stderr=True))):
        image, ground_truth = sample.load()
        segmentation = segmenter(image)
        table = overlap(ground_truth, segmentation.labels, ignore_truth=IGNORE)
        if not len(table.truth_ids):
            continue
        images.append((segmentation.confidence, covering(table), index))
        scored = table.shared.any(0)
        for label, iou in zip(table.segment_ids[scored], table.iou.max(0)[scored], strict=True):
            segment = segmentation.segments[label]
            segments.append((segment.confidence, iou, segment.area / ground_truth.size, index))
    confidence, quality, area, image_of = np.array(segments).T
    predictions = {
        kind: Predictions(confidence=formula(confidence, area), quality=quality, image=image_of.astype(int))
        for kind, formula in CONFIDENCES.items()
    }
    confidence, quality, image_of = np.array(images).T
    return predictions | {"images": Predictions(confidence=confidence, quality=quality, image=image_of.astype(int))}


def measure_reliability(predictions: Predictions, *, seed: int = 0) -> dict[str, Interval]:
    """Return the measures of `FIGURES`, with percentile bootstrap intervals over images."""
    groups = [np.flatnonzero(predictions.image == image) for image in np.unique(predictions.image)]
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(ROUNDS):
        sample = np.concatenate([groups[index] for index in rng.integers(len(groups), size=len(groups))])
        resampled.append(_figures(predictions.confidence[sample], predictions.quality[sample]))
    figures = _figures(predictions.confidence, predictions.quality)
    return {
        name: Interval(mean=figure, half_width=_half_width(np.array(column)), count=len(groups))
        for name, figure, column in zip(FIGURES, figures, zip(*resampled, strict=True), strict=True)
    }


def _half_width(resampled: np.ndarray) -> float:
    """Return half the width of the 95 % interval of resampled values; NaN values are ignored."""
    values = resampled[~np.isnan(resampled)]
    return float(np.ptp(np.quantile(values, [0.025, 0.975]))) / 2 if len(values) else float("nan")


def _figures(confidence: np.ndarray, quality: np.ndarray) -> tuple[float, float, float, float]:
    """Return the measures in the order of `FIGURES`; a measure is NaN if it is undefined, as with constant quality."""
    ranks, true_ranks = rankdata(confidence), rankdata(quality)
    spread = ranks.std() * true_ranks.std()
    correlation = ((ranks - ranks.mean()) * (true_ranks - true_ranks.mean())).mean() / spread if spread else np.nan
    good = quality >= GOOD
    pairs = good.sum() * (~good).sum()
    auc = (ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / pairs if pairs else np.nan
    order = np.argsort(confidence, kind="stable")
    error = sum(
        abs((confidence[part] - quality[part]).mean()) * len(part)
        for part in np.array_split(order, min(BINS, len(order)))
    )
    surer = quality[order[len(order) // 2 :]].mean() - quality.mean()
    return float(correlation), float(auc), float(error) / len(order), float(surer)


def rows_of(settings: Reliability) -> Iterator[ReliabilityRow]:
    """Yield a row for each set of samples and kind of confidence."""
    segmenter = Segmenter.from_pretrained(settings.model, device="cpu")
    for samples_name, samples in sample_sets(settings.samples).items():
        for kind, predictions in measure_quality(segmenter, samples).items():
            yield ReliabilityRow(
                samples=samples_name,
                kind=kind,
                count=len(predictions.quality),
                quality=float(predictions.quality.mean()),
                figures=measure_reliability(predictions),
                bins=predictions.bins(),
            )


def report(rows: Sequence[ReliabilityRow]) -> str:
    """Return a Markdown table for each set."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        table = [_cells(row) for row in rows if row.samples == samples]
        header = ["", "count", "mean IoU or covering", *FIGURES]
        parts += [f"### {samples}", markdown(header, table)]
    return "\n\n".join(parts)


def _cells(row: ReliabilityRow) -> list[str]:
    *others, surer = FIGURES
    figures = [format_mean(name, row.figures[name]) for name in others]
    return [row.kind, str(row.count), f"{row.quality:.3f}", *figures, format_difference(surer, row.figures[surer])]


def draw(rows: Sequence[ReliabilityRow], path: Path) -> None:
    """Plot mean IoU, or covering, by mean confidence, in a panel for each set; on the diagonal they are equal."""
    sets = list(dict.fromkeys(row.samples for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure = new_figure(0.4 + 3.8 * len(sets), 4.3 + 0.22 * len(kinds))
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, samples in zip(panels, sets, strict=True):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1)
        for row in rows:
            if row.samples == samples:
                confidence, quality = zip(*row.bins, strict=True)
                colour = COLOURS[kinds.index(row.kind)]
                axes.plot(confidence, quality, color=colour, linewidth=1.8, marker="o", markersize=4, label=row.kind)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="mean confidence", ylabel="mean IoU, or covering")
        style_axes(axes, samples.split(",")[0].split(":")[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=9)
    save_figure(figure, path)


def main(settings: Reliability) -> None:
    """Print the tables, and write them, the measures and the plot into the folder."""
    torch.set_num_threads(settings.threads)
    rows = list(rows_of(settings))
    text = report(rows)
    print(text)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "reliability.md").write_text(text + "\n")
    (settings.out / "reliability.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if can_draw("reliability.png"):
        draw(rows, settings.out / "reliability.png")


if __name__ == "__main__":
    main(tyro.cli(Reliability))
