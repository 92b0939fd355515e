"""Measure how well the text model generates images: `python -m diffseg.tiny.evaluation.generation`.

Images are generated from the captions of scenes that were not trained on, and the judge looks for the nouns in them.
Sampling is that of StableDiffusionPipeline in diffusers, with the scheduler of the checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from diffseg.drawing.overlay import contact_sheet
from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.tiny.evaluation.judge import JudgeNetwork, JudgeRecipe, found_nouns, segment, train_judge
from diffseg.tiny.evaluation.samples import SEEDS
from diffseg.tiny.evaluation.tables import format_mean, markdown
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned

__all__ = ["GenerationScores", "generate", "score_images"]

log = logging.getLogger(__name__)

MEASURES = ("nouns of the caption found", "area of its classes", "nouns of another caption found", "its absent nouns")
"""What is measured: the share of a caption's nouns that the judge finds, the share of the area that it gives to their
classes, and the share of the nouns of the next scene's caption that it finds, first of all of them, then of those that
the caption of the image does not name."""


@dataclass(frozen=True, kw_only=True)
class GenerationScores:
    """Measure the images that a text model generates from captions, beside rendered scenes of the same captions.

    Attributes:
        model: Diffusers folder of the text model.
        images: Number of captions.
        scenes: Use captions of held-out scenes for results to report, and of validation scenes for decisions.
        steps: Steps of the sampling.
        guidance: Scale of classifier-free guidance.
        batch: Images per batch.
        threads: Threads of torch.
        training: Folder of the judge and of the encoded scenes that it is trained on.
        out: Folder for generated.json and pictures of the images.
        judge: Settings of the judge's training.
    """

    model: Path = TEXT_CHECKPOINT
    images: int = 60
    scenes: Literal["validation", "held-out"] = "held-out"
    steps: int = 25
    guidance: float = 3.0
    batch: int = 6
    threads: int = 1
    training: Path = Path("tiny-text-training")
    out: Path = Path("tiny-eval")
    judge: JudgeRecipe = field(default_factory=JudgeRecipe)


def captioned_scenes(seeds: Sequence[int], count: int) -> list[CaptionedScene]:
    """Return the first `count` scenes whose caption is not empty."""
    return [*islice((scene for scene in map(generate_captioned, seeds) if scene.caption.classes), count)]


def generate(settings: GenerationScores, prompts: Sequence[str]) -> list[np.ndarray]:
    """Generate an image for each prompt, uint8 [H, W, 3]; the noise depends only on its place in the list."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(settings.model).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images: list[np.ndarray] = []
    for first in range(0, len(prompts), settings.batch):
        part = list(prompts[first : first + settings.batch])
        generators = [torch.Generator().manual_seed(first + index) for index in range(len(part))]
        made = pipeline(
            part,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=generators,
            output_type="np",
        ).images
        images += list((made * 255).round().astype(np.uint8))
    return images


def score_images(
    judge: JudgeNetwork, images: Sequence[np.ndarray], captions: Sequence[Sequence[int]]
) -> dict[str, Interval]:
    """Return the means of `MEASURES`, with 95 % intervals over images.

    Args:
        judge: Trained judge.
        images: uint8 [H, W, 3], at least two.
        captions: Classes that the caption of each image names.
    """
    maps = np.concatenate([segment(judge, images[first : first + 8]) for first in range(0, len(images), 8)])
    sums = []
    for classes, own, other in zip(maps, captions, [*captions[1:], captions[0]], strict=True):
        found, absent = found_nouns(classes), set(other) - set(own)
        counts = [(len(found & set(own)), len(own)), (np.isin(classes, list(own)).mean(), 1)]
        counts += [(len(found & set(other)), len(other)), (len(found & absent), len(absent))]
        sums.append(np.ravel(counts))
    return dict(zip(MEASURES, bootstrap(np.array(sums), _ratios), strict=True))


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Return the ratios of pairs of neighbours."""
    return sums[::2] / sums[1::2]


def main(settings: GenerationScores) -> None:
    """Print the table, and write it and pictures of the images into the folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderTiny.from_pretrained(settings.model / "vae", use_safetensors=True).float().eval()
    judge = train_judge(settings.judge, vae, settings.training)
    scenes = captioned_scenes(SEEDS[settings.scenes], settings.images)
    captions = [scene.caption.classes for scene in scenes]
    prompts = [scene.caption.text for scene in scenes]
    pictures: Mapping[str, list[np.ndarray]] = {
        "rendered": [scene.image for scene in scenes],
        "generated": generate(settings, prompts),
    }
    scores = {name: score_images(judge, images, captions) for name, images in pictures.items()}
    rows = [[name, *(format_mean(key, value) for key, value in values.items())] for name, values in scores.items()]
    print(markdown(["images", *MEASURES], rows))
    results = {name: {key: asdict(value) for key, value in values.items()} for name, values in scores.items()}
    (settings.out / "generated.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, images in pictures.items():
        contact_sheet([[image] for image in images], height=128, columns=10).save(settings.out / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(GenerationScores))
