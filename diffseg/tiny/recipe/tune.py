"""Choose the merging thresholds of an embedded model: `python -m diffseg.tiny.recipe.tune`.

All candidates are scored on validation scenes, whose seeds are used neither for training nor for reported results.
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
"""Merging thresholds, one per round."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Score all pairs of a first and a later threshold on validation scenes.

    Attributes:
        model: Folder in the layout of the embedded checkpoint.
        images: Number of validation scenes.
        captioned: Make every second scene a captioned one, for a text model.
        timesteps: Timesteps to try.
        first: Thresholds to try for the first round, which averages attention rows into proposals.
        later: Thresholds to try for the two rounds after it, which merge proposals.
        write: Write the best thresholds and timestep into diffseg.json of the folder.
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
    """Return the covering and the mean best IoU of each candidate, averaged over scenes, float64 [candidates, 2].

    The network runs once per image, and only the merging is repeated for each candidate.

    Args:
        segmenter: Model and all other settings.
        candidates: Thresholds to score.
        scenes: Images, uint8 [H, W, 3], and their labels, uint16 [H, W].
        timestep: Timestep of the pass.
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
    """Log the scores of all candidates and return the thresholds and the timestep with the best mean of both scores.

    Covering alone is nearly constant over a wide range of thresholds, and at the upper end of that range small objects
    are lost.
    """
    segmenter = Segmenter.from_pretrained(settings.model, device="cpu")
    candidates = [(first, later, later) for first, later in itertools.product(settings.first, settings.later)]
    scenes = _validation_scenes(settings)
    best = (-1.0, candidates[0], settings.timesteps[0])
    for timestep in settings.timesteps:
        scores = grid_scores(segmenter, candidates, scenes, timestep)
        for tau, (covered, best_iou) in sorted(zip(candidates, scores.tolist(), strict=True), key=lambda pair: pair[1]):
            log.info("t %d  tau %s  covering %.4f  best IoU %.4f", timestep, tau, covered, best_iou)
            best = max(best, ((covered + best_iou) / 2, tau, timestep))
    return best[1], best[2]


def _validation_scenes(settings: Tuning) -> list[tuple[np.ndarray, np.ndarray]]:
    """Generate validation scenes, uint8 [H, W, 3], and their labels, uint16 [H, W]."""
    generators = (generate_scene, generate_captioned if settings.captioned else generate_scene)
    scenes = [generators[index % 2](seed) for index, seed in enumerate(VALIDATION_SEEDS[: settings.images])]
    return [(scene.image, scene.labels) for scene in scenes]


def main(settings: Tuning) -> None:
    """Tune the thresholds, and write the best ones into the folder if that is requested."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    tau, timestep = tune(settings)
    if settings.write:
        path = settings.model / "diffseg.json"
        model_settings = json.loads(path.read_text()) | {"tau": list(tau), "timestep": timestep}
        path.write_text(json.dumps(model_settings, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Tuning))
