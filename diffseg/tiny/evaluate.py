"""How good the embedded model is on scenes it never saw: `python -m diffseg.tiny.evaluate`.

Training, tuning and this table use three disjoint ranges of scene seeds (diffseg.tiny.scenes). The scores say how well
regions of colour and texture are found, which is what this model was made for; they say nothing about photographs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffseg.baselines import Clusters, one_segment
from diffseg.metrics import Interval, bootstrap_mean, covering, match_per_image, mean_best_iou, overlap
from diffseg.segmenter import Segmenter
from diffseg.tiny.export import CHECKPOINT
from diffseg.tiny.scenes import HELD_OUT_SEEDS, Scene, generate_scene
from diffseg.tiny.untrained import UNTRAINED_TAU, write_untrained

__all__ = ["Evaluation", "Row", "evaluate", "score"]

Method = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method's scores over all images: means in [0, 1] with 95 % bootstrap intervals, and seconds per image."""

    method: str
    covering: Interval
    best_iou: Interval
    miou: Interval
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score the embedded model against what it must beat, on held-out scenes.

    Attributes:
        model: a folder in the layout of the embedded checkpoint.
        images: number of held-out scenes.
        untrained: number of random weightings of the same network to average over.
        size: side of the scenes in pixels.
        threads: of torch.
        json: print JSON instead of a table.
    """

    model: Path = CHECKPOINT
    images: int = 60
    untrained: int = 3
    size: int = 256
    threads: int = 1
    json: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.images <= len(HELD_OUT_SEEDS):
            raise ValueError(f"images={self.images}: expected 1 to {len(HELD_OUT_SEEDS)}")


def score(method: Method, scenes: Sequence[Scene]) -> tuple[np.ndarray, float]:
    """Per-image covering, mean best IoU and matched mIoU, float64 [N, 3], and seconds per image."""
    scores = []
    spent = 0.0
    for scene in scenes:
        start = time.perf_counter()
        labels = method(scene.image)
        spent += time.perf_counter() - start
        table = overlap(scene.labels, labels)
        scores.append((covering(table), mean_best_iou(table), match_per_image(table).miou))
    return np.array(scores), spent / len(scenes)


def evaluate(settings: Evaluation) -> Iterator[Row]:
    """Yield one row after another, the model's first."""
    torch.set_num_threads(settings.threads)
    scenes = [generate_scene(seed, settings.size) for seed in HELD_OUT_SEEDS[: settings.images]]
    yield _row("embedded model", [score(_model(settings.model), scenes)])
    yield _row("the same, assign=peak as in the paper", [score(_model(settings.model, assign="peak"), scenes)])
    yield _row("k-means, Lab + position", [score(Clusters(), scenes)])
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed in range(settings.untrained):
            twin = Path(folder) / str(seed)
            write_untrained(twin, settings.model, seed=seed)
            runs.append(score(_model(twin, tau=UNTRAINED_TAU), scenes))
        if runs:
            yield _row(f"same network, random weights ({len(runs)} seeds)", runs)
    yield _row("one segment", [score(one_segment, scenes)])


def _model(folder: Path, **settings: Any) -> Method:
    segmenter = Segmenter.from_pretrained(folder, device="cpu", **settings)
    return lambda image: segmenter(image).labels


def _row(name: str, runs: list[tuple[np.ndarray, float]]) -> Row:
    scores = np.mean([scores for scores, _ in runs], axis=0)
    intervals = [bootstrap_mean(column) for column in scores.T]
    seconds = float(np.mean([seconds for _, seconds in runs]))
    return Row(method=name, covering=intervals[0], best_iou=intervals[1], miou=intervals[2], seconds=seconds)


def _table(rows: Sequence[Row], settings: Evaluation) -> Table:
    table = Table(title=f"{settings.images} held-out scenes of {settings.size} px, {settings.threads} thread(s)")
    table.add_column("method")
    for column in ("covering", "mean best IoU", "per-image mIoU", "s/image"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{i.mean:.3f} ± {i.half_width:.3f}" for i in (row.covering, row.best_iou, row.miou)]
        table.add_row(row.method, *cells, f"{row.seconds:.3f}")
    return table


def main(settings: Evaluation) -> None:
    """Print the table, or JSON."""
    errors = Console(stderr=True)
    rows = list(track(evaluate(settings), description="scoring", total=4 + (settings.untrained > 0), console=errors))
    if settings.json:
        document = {"images": settings.images, "size": settings.size, "rows": [asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        Console().print(_table(rows, settings))


if __name__ == "__main__":
    main(tyro.cli(Evaluation))
