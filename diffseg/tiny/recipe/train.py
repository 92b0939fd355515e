"""Train the embedded model from procedural scenes alone: `python -m diffseg.tiny.recipe.train --out tiny-training`.

The training consists of the autoencoder, the encoding of all scenes, the UNet on dead leaves (first cropped, then
whole) and on scenes, and the export. The random numbers of a step depend only on seed, training and step, so a training
that was killed continues from its last checkpoint to exactly the weights of an uninterrupted one. Schedules count
steps, never seconds. With one thread, the training takes about three hours.
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
from diffseg.tiny.recipe.export import CHECKPOINT, export_checkpoint
from diffseg.tiny.recipe.latents import LatentPool
from diffseg.tiny.recipe.model import build_networks
from diffseg.tiny.recipe.settings import Recipe
from diffseg.tiny.recipe.training_state import load_state
from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.scenes import Scene, generate_scene

__all__ = ["TrainCommand", "main", "record_recipe", "train"]

log = logging.getLogger(__name__)


def train(recipe: Recipe, out: Path, *, save_every: int = 100) -> tuple[AutoencoderTiny, UNet2DConditionModel]:
    """Train the model, from its last checkpoint if there is one.

    Args:
        recipe: Settings; they must equal those with which the training in `out` was started.
        out: Folder of all checkpoints and encoded scenes. The process may be killed at any time.
        save_every: Steps between checkpoints; they do not change the result.

    Returns:
        The autoencoder and the UNet, the UNet with its averaged weights.

    Raises:
        ValueError: The training in `out` was started with another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    record_recipe(recipe, out / "recipe.json")
    vae, unet, scheduler = build_networks(recipe.seed)
    train_autoencoder(recipe, vae, out, save_every=save_every)
    pools = _prepare_pools(recipe, vae, out)
    train_denoiser(recipe, unet, pools, scheduler.alphas_cumprod, out, vae=vae, save_every=save_every)
    return vae, unet


def _prepare_pools(recipe: Recipe, vae: AutoencoderTiny, out: Path) -> dict[str, LatentPool]:
    """Return both pools; the scale of the dead leaves applies to both and becomes the scaling factor of `vae`."""
    leaves = LatentPool.prepare(
        out / "leaves", vae, lambda seed: Scene(*generate_leaves(seed, recipe.size)), count=recipe.leaves
    )
    scenes = LatentPool.prepare(
        out / "scenes", vae, lambda seed: generate_scene(seed, recipe.size), count=recipe.scenes, scale=leaves.scale
    )
    vae.register_to_config(scaling_factor=leaves.scale)
    return {"leaves": leaves, "scenes": scenes}


def record_recipe(recipe: Any, path: Path) -> None:
    """Write the settings of a training to a file.

    Raises:
        ValueError: The file already contains other settings.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if path.exists() and (recorded := json.loads(path.read_text())) != settings:
        changed = {key: (recorded.get(key), value) for key, value in settings.items() if recorded.get(key) != value}
        raise ValueError(
            f"{path}: this training was started with other settings (recorded, given): {changed}; "
            "give the recorded ones, delete the folder, or choose another --out"
        )
    path.write_text(json.dumps(settings, indent=2))


def export_state(recipe: Recipe, out: Path, folder: Path) -> None:
    """Write the diffusers folder from the last checkpoint in `out`, even if the training is unfinished."""
    vae, unet, scheduler = build_networks(recipe.seed)
    average: dict[str, Tensor] = {}
    load_state(out / "vae.pt", vae=vae)
    steps = load_state(out / "unet.pt", average=average)
    if average:
        unet.load_state_dict(average)
    _prepare_pools(recipe, vae, out)
    export_checkpoint(vae, unet, scheduler, folder, recipe={**dataclasses.asdict(recipe), "unet_steps_done": steps})
    log.info("wrote %s", folder)


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train the embedded model, from the last checkpoint in --out if there is one, and export it.

    Attributes:
        out: Working folder, with all checkpoints and encoded scenes.
        checkpoint: Diffusers folder to write.
        export: Only export the last checkpoint in --out, even if the training is unfinished.
        save_every: Steps between checkpoints; they do not change the result.
        recipe: Settings that determine the weights.
    """

    out: Path = Path("tiny-training")
    checkpoint: Path = CHECKPOINT
    export: bool = False
    save_every: int = 100
    recipe: Recipe = field(default_factory=Recipe)


def main(command: TrainCommand) -> None:
    """Train and export, or only export."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # sums, and therefore the weights, depend on the number of threads
    if not command.export:
        train(command.recipe, command.out, save_every=command.save_every)
    export_state(command.recipe, command.out, command.checkpoint)


if __name__ == "__main__":
    main(tyro.cli(TrainCommand))
