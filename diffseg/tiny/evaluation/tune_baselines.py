"""Choose the settings of the baselines: `python -m diffseg.tiny.evaluation.tune_baselines`.

The baselines are tuned like the thresholds of the model, on validation scenes and by the same score, so that the model
is compared with each baseline at its best. The best settings are printed, and the defaults of
`diffseg.scoring.baselines` are then set by hand.
"""

from __future__ import annotations

import dataclasses
import functools
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

__all__ = ["CANDIDATES", "BaselineTuning", "coordinate_ascent", "validation_score"]

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
"""Values to try for each field of each baseline, ascending."""
UNTRAINED_TAUS = (0.0001, 0.0003, 0.001, 0.003, 0.01)
"""Thresholds to try for the untrained network."""


@dataclass(frozen=True, kw_only=True)
class BaselineTuning:
    """Find the settings of each baseline that score best on validation scenes.

    Attributes:
        images: Number of validation scenes.
        names: Names of the baselines to tune; "random weights" is the untrained network.
    """

    images: int = 60
    names: tuple[str, ...] = (*CANDIDATES, "random weights")


def validation_score(method: Callable[[np.ndarray], np.ndarray], scenes: Sequence[Scene]) -> float:
    """Return the mean of covering and mean best IoU over scenes, in [0, 1], as in `diffseg.tiny.recipe.tune`."""
    tables = [overlap(scene.labels, method(scene.image)) for scene in scenes]
    return float(np.mean([(covering(table) + mean_best_iou(table)) / 2 for table in tables]))


def coordinate_ascent(
    start: Any, candidates: Mapping[str, Sequence[Any]], score: Callable[[Any], float]
) -> tuple[Any, float]:
    """Maximise a score by changing one field at a time.

    Each field moves up and then down its candidates as long as the score rises, until no change of a single field
    improves the score.

    Args:
        start: Dataclass with the initial settings, whose values need not be among the candidates.
        candidates: Values to try for each field, ascending.
        score: Returns the score of settings; it is called once for each.

    Returns:
        The best settings and their score.
    """
    scores: dict[Any, float] = {}

    def score_of(settings: Any) -> float:
        if settings not in scores:
            scores[settings] = score(settings)
            log.info("%.4f  %s", scores[settings], settings)
        return scores[settings]

    best, previous = start, None
    while best != previous:
        previous = best
        for name, values in candidates.items():
            current = getattr(best, name)
            above = [value for value in values if value > current]
            below = [value for value in values if value < current]
            for direction in (above, below[::-1]):
                for value in direction:
                    neighbour = dataclasses.replace(best, **{name: value})
                    if score_of(neighbour) <= score_of(best):
                        break
                    best = neighbour
    return best, score_of(best)


def untrained_threshold(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Return the threshold for all rounds with the best score for a network with random weights, and that score."""
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(Path(folder) / "untrained", CHECKPOINT, seed=0)
        segmenter = Segmenter.from_pretrained(Path(folder) / "untrained")
    scores = []
    for tau in UNTRAINED_TAUS:
        variant = Segmenter(segmenter.backbone, settings_of(tau=tau))
        scores.append(validation_score(lambda image: variant(image).labels, scenes))  # noqa: B023 (called at once)
        log.info("%.4f  random weights, tau %g", scores[-1], tau)
    return UNTRAINED_TAUS[int(np.argmax(scores))], max(scores)


def main(settings: BaselineTuning) -> None:
    """Log the scores of all candidates, and print the best settings of each baseline."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if LEFT_OUT:
        log.warning(LEFT_OUT)
    scenes = [generate_scene(seed) for seed in VALIDATION_SEEDS[: settings.images]]
    results = {}
    for name in settings.names:
        if name == "random weights":
            results[name] = untrained_threshold(scenes)
        elif name in BASELINES:
            score_of = functools.partial(validation_score, scenes=scenes)
            results[name] = coordinate_ascent(BASELINES[name], CANDIDATES[name], score_of)
    for name, (best, score) in results.items():
        print(f"{name}: {best}, {score:.4f}")


if __name__ == "__main__":
    main(tyro.cli(BaselineTuning))
