"""Whether confidence says how good a segment is: `python -m diffseg.tiny.evaluation.reliability`.

A segment is as good as its best intersection over union with a region of the truth; an image as its covering. Besides
the confidence that a label run records, others are judged that could be made of what it records.

Axes: S segments, or images.
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
from diffseg.segmentation import IGNORE
from diffseg.segmenter import Segmenter
from diffseg.tiny.evaluation.samples import Choice, Sample, chosen
from diffseg.tiny.evaluation.tables import markdown, number, signed
from diffseg.tiny.recipe.export import CHECKPOINT

__all__ = ["FIGURES", "Judged", "Reliability", "judge", "measure"]

GOOD = 0.5
"""IoU from which a segment is called found, as detection benchmarks have it."""
BINS = 10
ROUNDS = 500

FIGURES = ("rank correlation", "AUC", "calibration error", "surer half")
"""Spearman's; the chance that one with `GOOD` IoU is surer than one without; the mean distance of confidence and IoU in
bins of equal counts; how much higher the mean IoU of the surer half is than that of all."""

CONFIDENCES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "segments: confidence": lambda confidence, area: confidence,
    "segments: confidence · area^0.25": lambda confidence, area: confidence * area**0.25,
    "segments: confidence · area^0.5": lambda confidence, area: confidence * area**0.5,
}
"""Of the recorded confidence and the area as a share of the image."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Compare confidence with what it should tell, for segments and for whole images, with 95 % intervals.

    Attributes:
        samples: on what.
        model: a folder in the layout of the embedded checkpoint.
        threads: of torch.
        out: a folder for reliability.md, reliability.json and the plot reliability.png.
    """

    samples: tyro.conf.OmitArgPrefixes[Choice] = field(default_factory=Choice)
    model: Path = CHECKPOINT
    threads: int = 1
    out: Path = Path("tiny-eval")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What was said and what was true: float64 [S] in [0, 1] each, and int [S], the image that each belongs to."""

    confidence: np.ndarray
    quality: np.ndarray
    image: np.ndarray

    def bins(self) -> list[tuple[float, float]]:
        """Mean confidence and mean quality of equal shares, from the least sure to the surest."""
        parts = np.array_split(np.argsort(self.confidence, kind="stable"), min(BINS, len(self.confidence)))
        return [(float(self.confidence[part].mean()), float(self.quality[part].mean())) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a kind of confidence is worth on one set. bins: see `Judged.bins`."""

    samples: str
    kind: str
    count: int
    quality: float
    figures: dict[str, Interval]
    bins: list[tuple[float, float]]


def measure(segmenter: Segmenter, samples: Sequence[Sample]) -> dict[str, Judged]:
    """Segments by each of `CONFIDENCES`, and images; without those in which nothing has a truth."""
    segments: list[tuple[float, float, float, int]] = []
    images: list[tuple[float, float, int]] = []
    for index, sample in enumerate(track(samples, description="segmenting", console=Console(stderr=True))):
        image, truth = sample.load()
        found = segmenter(image)
        table = overlap(truth, found.labels, ignore_truth=IGNORE)
        if not len(table.truth_ids):
            continue
        images.append((found.confidence, covering(table), index))
        for label, iou in zip(table.segment_ids, table.iou.max(0), strict=True):
            segment = found.segments[label]
            segments.append((segment.confidence, iou, segment.area / truth.size, index))
    confidence, quality, area, image_of = np.array(segments).T
    judged = {
        kind: Judged(confidence=told(confidence, area), quality=quality, image=image_of.astype(int))
        for kind, told in CONFIDENCES.items()
    }
    confidence, quality, image_of = np.array(images).T
    return judged | {"images": Judged(confidence=confidence, quality=quality, image=image_of.astype(int))}


def judge(judged: Judged, *, seed: int = 0) -> dict[str, Interval]:
    """`FIGURES`, with a percentile bootstrap over images."""
    groups = [np.flatnonzero(judged.image == image) for image in np.unique(judged.image)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(ROUNDS):
        picked = np.concatenate([groups[index] for index in rng.integers(len(groups), size=len(groups))])
        drawn.append(_figures(judged.confidence[picked], judged.quality[picked]))
    figures = _figures(judged.confidence, judged.quality)
    return {
        name: Interval(mean=figure, half_width=_half_width(np.array(column)), count=len(groups))
        for name, figure, column in zip(FIGURES, figures, zip(*drawn, strict=True), strict=True)
    }


def _half_width(drawn: np.ndarray) -> float:
    there = drawn[~np.isnan(drawn)]
    return float(np.ptp(np.quantile(there, [0.025, 0.975]))) / 2 if len(there) else float("nan")


def _figures(confidence: np.ndarray, quality: np.ndarray) -> tuple[float, float, float, float]:
    """In the order of `FIGURES`; NaN where there is no such figure, as with a single quality."""
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


def rows_of(settings: Reliability) -> Iterator[Row]:
    """A row for each set and kind of confidence."""
    segmenter = Segmenter.from_pretrained(settings.model, device="cpu")
    for samples_name, samples in chosen(settings.samples).items():
        for kind, judged in measure(segmenter, samples).items():
            yield Row(
                samples=samples_name,
                kind=kind,
                count=len(judged.quality),
                quality=float(judged.quality.mean()),
                figures=judge(judged),
                bins=judged.bins(),
            )


def report(rows: Sequence[Row]) -> str:
    """A table in Markdown for each set."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        table = [_cells(row) for row in rows if row.samples == samples]
        header = ["", "count", "mean IoU or covering", *FIGURES]
        parts += [f"### {samples}", markdown(header, table)]
    return "\n\n".join(parts)


def _cells(row: Row) -> list[str]:
    *others, surer = FIGURES
    figures = [number(name, row.figures[name]) for name in others]
    return [row.kind, str(row.count), f"{row.quality:.3f}", *figures, signed(surer, row.figures[surer])]


def draw(rows: Sequence[Row], path: Path) -> None:
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
    """Print the tables and write them, the figures and the plot into the folder."""
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
