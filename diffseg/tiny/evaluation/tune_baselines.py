"""Choose the settings of the baselines: `python -m diffseg.tiny.evaluation.tune_baselines`.

They are tuned like the model's thresholds, on validation scenes and by the same score, so that the model is compared
with the best that each can do. What is found is printed; the defaults of `diffseg.scoring.baselines` are then set by hand.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from diffseg.scoring.baselines import BASELINES, LEFT_OUT
from diffseg.scoring.overlap import covering, mean_best_iou, overlap
from diffseg.segmenter import Segmenter
from diffseg.settings import settings_of
from diffseg.tiny.evaluation.untrained import write_untrained
from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, Scene, generate_scene

__all__ = ["CANDIDATES", "BaselineTuning", "climb", "validation_score"]

log = logging.getLogger(__name__)

CANDIDATES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "grid": {"rows": (1, 2, 3, 4), "columns": (1, 2, 3, 4)},
    "k-means": {
        "clusters": (3, 4, 5, 6, 8, 11, 15),
        "reach": (5.0, 10.0, 20.0, 40.0),
        "side": (64, 128),
    },
    "Felzenszwalb": {
        "scale": (150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 600.0, 800.0, 1000.0, 1300.0),
        "sigma": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5),
        "min_area": (0.001, 0.002, 0.003, 0.005, 0.007, 0.01),
    },
    "SLIC + merging": {
        "threshold": (8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 24.0),
        "compactness": (5.0, 10.0, 20.0, 30.0, 50.0),
        "count": (100, 200, 300, 400, 600),
        "small": (0.002, 0.005, 0.01, 0.02, 0.04),
    },
}
UNTRAINED_TAUS = (0.0001, 0.0003, 0.001, 0.003, 0.01)


@dataclass(frozen=True, kw_only=True)
class BaselineTuning:
    """Find the settings of each baseline that score best on validation scenes.

    Attributes:
        images: number of validation scenes.
        names: which baselines; "random weights" is the untrained network.
    """

    images: int = 60
    names: tuple[str, ...] = (*CANDIDATES, "random weights")


def validation_score(method: Callable[[np.ndarray], np.ndarray], scenes: Sequence[Scene]) -> float:
    """The mean of covering and mean best IoU over scenes, in [0, 1], as `diffseg.tiny.recipe.tune` weighs them."""
    tables = [overlap(scene.labels, method(scene.image)) for scene in scenes]
    return float(np.mean([(covering(table) + mean_best_iou(table)) / 2 for table in tables]))


def climb(start: Any, candidates: Mapping[str, Sequence[Any]], score: Callable[[Any], float]) -> tuple[Any, float]:
    """Change one field at a time, up and down its candidates as long as that helps, until no change of one helps.

    start: a dataclass, whose fields need not be among the candidates, which ascend. Returns the best and its score.
    """
    seen: dict[Any, float] = {}

    def scored(settings: Any) -> float:
        if settings not in seen:
            seen[settings] = score(settings)
            log.info("%.4f  %s", seen[settings], settings)
        return seen[settings]

    best, before = start, None
    while best != before:
        before = best
        for name, values in candidates.items():
            now = getattr(best, name)
            above, below = [value for value in values if value > now], [value for value in values if value < now]
            for further in (above, below[::-1]):
                for value in further:
                    neighbour = dataclasses.replace(best, **{name: value})
                    if scored(neighbour) <= scored(best):
                        break
                    best = neighbour
    return best, scored(best)


def untrained_threshold(scenes: Sequence[Scene]) -> tuple[float, float]:
    """The threshold for all rounds that suits a network of random weights best, and its score."""
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(Path(folder) / "untrained", CHECKPOINT, seed=0)
        segmenter = Segmenter.from_pretrained(Path(folder) / "untrained")
    scores = []
    for tau in UNTRAINED_TAUS:
        other = Segmenter(segmenter.backbone, settings_of(tau=tau))
        scores.append(validation_score(lambda image: other(image).labels, scenes))  # noqa: B023 (called here)
        log.info("%.4f  random weights, tau %g", scores[-1], tau)
    return UNTRAINED_TAUS[int(np.argmax(scores))], max(scores)


def main(settings: BaselineTuning) -> None:
    """Log every candidate's score and print the best of each baseline."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if LEFT_OUT:
        log.warning(LEFT_OUT)
    scenes = [generate_scene(seed) for seed in VALIDATION_SEEDS[: settings.images]]
    found = {}
    for name in settings.names:
        if name == "random weights":
            found[name] = untrained_threshold(scenes)
        elif name in BASELINES:
            found[name] = climb(BASELINES[name], CANDIDATES[name], lambda method: validation_score(method, scenes))
    for name, (best, score) in found.items():
        print(f"{name}: {best}, {score:.4f}")


if __name__ == "__main__":
    main(tyro.cli(BaselineTuning))
