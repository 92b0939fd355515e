"""Choose the merging thresholds that ship with the embedded model: `python -m diffseg.tiny.recipe.tune`.

Every candidate is scored on validation scenes, whose seeds are neither trained on nor reported on.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from diffseg.images.canvas import fit_image
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.scoring.overlap import covering, mean_best_iou, overlap
from diffseg.segmenter import Segmenter
from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.tiny.scenes.captioned import generate_captioned
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene

__all__ = ["Tuning", "grid_scores", "tune"]

log = logging.getLogger(__name__)

Tau = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Score all pairs of a first and a later threshold on validation scenes and write the best into diffseg.json.

    Attributes:
        model: a folder in the layout of the embedded checkpoint.
        images: number of validation scenes.
        captioned: whether every other scene is of the closed vocabulary, for a model that reads text.
        timesteps: to try.
        first: thresholds of the first round, which averages rows into proposals.
        later: thresholds of the two rounds after it, which merge proposals.
        write: whether to write the best into the folder.
    """

    model: Path = CHECKPOINT
    images: int = 100
    captioned: bool = False
    timesteps: tuple[int, ...] = (300,)
    first: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.6)
    later: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
    write: bool = False


def grid_scores(
    segmenter: Segmenter, candidates: Sequence[Tau], scenes: Sequence[tuple[np.ndarray, np.ndarray]], timestep: int
) -> np.ndarray:
    """Mean covering and mean best IoU of every candidate over images and their labels, float64 [candidates, 2].

    The network runs once per image; only the merging is done again for each candidate.
    """
    scores = np.zeros((len(candidates), 2))
    for image, labels in scenes:
        canvas = fit_image(image, segmenter.resolution, segmenter.settings.model_input.fit)
        attention = segmenter.backbone.self_attention(canvas.pixels[None], timestep)
        for index, tau in enumerate(candidates):
            proposal_scores, _ = scores_of(attention, segmenter.settings, tau)
            table = overlap(labels, decide(proposal_scores[0], labels.shape).labels)
            scores[index] += covering(table), mean_best_iou(table)
    return scores / len(scenes)


def tune(settings: Tuning) -> tuple[Tau, int]:
    """Log every candidate's scores and return the thresholds and the timestep that are best by the mean of the two.

    Covering alone is nearly flat over a wide range, at the upper end of which small objects are lost.
    """
    segmenter = Segmenter.from_pretrained(settings.model, device="cpu")
    candidates = [(first, later, later) for first, later in itertools.product(settings.first, settings.later)]
    scenes = _scenes(settings)
    best = (-1.0, candidates[0], settings.timesteps[0])
    for timestep in settings.timesteps:
        scores = grid_scores(segmenter, candidates, scenes, timestep)
        for tau, (covered, best_iou) in sorted(zip(candidates, scores.tolist(), strict=True), key=lambda pair: pair[1]):
            log.info("t %d  tau %s  covering %.4f  best IoU %.4f", timestep, tau, covered, best_iou)
            best = max(best, ((covered + best_iou) / 2, tau, timestep))
    return best[1], best[2]


def _scenes(settings: Tuning) -> list[tuple[np.ndarray, np.ndarray]]:
    """Validation scenes, uint8 [H, W, 3], and their labels, uint16 [H, W]."""
    generators = (generate_scene, generate_captioned if settings.captioned else generate_scene)
    scenes = [generators[place % 2](seed) for place, seed in enumerate(VALIDATION_SEEDS[: settings.images])]
    return [(scene.image, scene.labels) for scene in scenes]


def main(settings: Tuning) -> None:
    """Tune, and write the best into the folder's diffseg.json where that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    tau, timestep = tune(settings)
    if settings.write:
        path = settings.model / "diffseg.json"
        notes = json.loads(path.read_text()) | {"tau": list(tau), "timestep": timestep}
        path.write_text(json.dumps(notes, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Tuning))
