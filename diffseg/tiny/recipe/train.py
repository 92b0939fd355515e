"""Train the embedded model from nothing but procedural scenes: `python -m diffseg.tiny.recipe.train --out tiny-training`.

Autoencoder; pools of encoded scenes; UNet on dead leaves, first cropped and then whole, then on scenes; export. Every
random number of a step follows from (seed, stage, step), so a killed run goes on from its last checkpoint to exactly
the weights of an undisturbed one. Schedules are in steps, never in seconds. One thread: about three hours.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor

from diffseg.tiny.recipe.autoencoder import train_autoencoder
from diffseg.tiny.recipe.denoiser import train_denoiser
from diffseg.tiny.recipe.export import CHECKPOINT, export
from diffseg.tiny.recipe.latents import Pool
from diffseg.tiny.recipe.model import build
from diffseg.tiny.recipe.optim import load_state
from diffseg.tiny.recipe.settings import Recipe
from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.scenes import Scene, generate_scene

__all__ = ["Command", "claim", "main", "train"]

log = logging.getLogger(__name__)


def train(recipe: Recipe, out: Path, *, save_every: int = 100) -> tuple[AutoencoderTiny, UNet2DConditionModel]:
    """Run all stages, or what is left of them, in the folder `out`; return the networks, averaged weights in the UNet.

    Args:
        recipe: must equal the one that `out` was begun with.
        out: holds the whole state; any number of kills is harmless.
        save_every: steps between checkpoints; does not change the result.

    Raises:
        ValueError: where `out` was begun with another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(recipe, out / "recipe.json")
    vae, unet, scheduler = build(recipe.seed)
    train_autoencoder(recipe, vae, out, save_every=save_every)
    pools = _pools(recipe, vae, out)
    train_denoiser(recipe, unet, pools, scheduler.alphas_cumprod, out, vae=vae, save_every=save_every)
    return vae, unet


def _pools(recipe: Recipe, vae: AutoencoderTiny, out: Path) -> dict[str, Pool]:
    """Both pools; the latents of leaves set the scale of all, which `vae` is told."""
    leaves = Pool.prepare(
        out / "leaves", vae, lambda seed: Scene(*generate_leaves(seed, recipe.size)), count=recipe.leaves
    )
    scenes = Pool.prepare(
        out / "scenes", vae, lambda seed: generate_scene(seed, recipe.size), count=recipe.scenes, scale=leaves.scale
    )
    vae.register_to_config(scaling_factor=leaves.scale)
    return {"leaves": leaves, "scenes": scenes}


def claim(recipe: Any, path: Path) -> None:
    """Write a recipe's settings to `path`; raise ValueError where others are there already."""
    settings = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        changed = {key: (found.get(key), value) for key, value in settings.items() if found.get(key) != value}
        raise ValueError(
            f"{path} was begun with other settings (there, here): {changed}; delete it or use another --out"
        )
    path.write_text(json.dumps(settings, indent=2))


def export_state(recipe: Recipe, out: Path, folder: Path) -> None:
    """Write the diffusers folder from what `out` holds, finished or not."""
    vae, unet, scheduler = build(recipe.seed)
    average: dict[str, Tensor] = {}
    load_state(out / "vae.pt", vae=vae)
    steps = load_state(out / "unet.pt", average=average)
    if average:
        unet.load_state_dict(average)
    _pools(recipe, vae, out)
    export(vae, unet, scheduler, folder, recipe={**dataclasses.asdict(recipe), "unet_steps_done": steps})
    log.info("wrote %s", folder)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train the embedded model, going on from what --out holds, and export it.

    Attributes:
        out: working folder.
        checkpoint: where the diffusers folder is written.
        export: only export what --out holds, be it unfinished.
        save_every: steps between checkpoints; does not change the result.
    """

    out: Path = Path("tiny-training")
    checkpoint: Path = CHECKPOINT
    export: bool = False
    save_every: int = 100
    recipe: Recipe = field(default_factory=Recipe)


def main(command: Command) -> None:
    """Train from where the folder stands, then export; only export where that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # the sums, and so the weights, depend on it
    if not command.export:
        train(command.recipe, command.out, save_every=command.save_every)
    export_state(command.recipe, command.out, command.checkpoint)


if __name__ == "__main__":
    main(tyro.cli(Command))
