"""The export of an embedded model as a Stable Diffusion folder of diffusers, in half precision."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffseg.model.layout import TINY as CHECKPOINT
from diffseg.settings import StageName

__all__ = ["CHECKPOINT", "TRAINED_ON", "export_checkpoint"]

TRAINED_ON = "procedurally generated images only (diffseg.tiny.scenes.scenes); no photograph, no human label"
"""The training data of the text-free model, as recorded in its checkpoint."""


def export_checkpoint(
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    folder: Path,
    *,
    recipe: dict[str, Any],
    tau: tuple[float, ...] = (0.3, 0.3, 0.3),
    timestep: int = 300,
    method: tuple[StageName, ...] = ("diffseg", "par"),
    trained_on: str = TRAINED_ON,
    text: tuple[CLIPTextModel, CLIPTokenizer] | None = None,
) -> None:
    """Write a checkpoint in the layout of StableDiffusionPipeline, and replace an existing folder as a whole.

    Args:
        vae: Autoencoder in float32, with its `scaling_factor` set.
        unet: UNet in float32, with the weights to export.
        scheduler: Scheduler, of which only the configuration is written.
        folder: Folder to write; its parent must exist.
        recipe: Settings, seed and steps, which are recorded in the checkpoint.
        tau: Merging thresholds for this model, one per round; those of the paper merge nearly everything here.
        timestep: Timestep at which the thresholds were tuned.
        method: Stages of the method that are the default for this model.
        trained_on: Description of the training data.
        text: Text encoder in float32 and tokenizer, for a text model.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, part in (("vae", vae), ("unet", unet)):
        copy.deepcopy(part).half().save_pretrained(partial / name, safe_serialization=True)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        **{name: [None, None] for name in ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")},
        "requires_safety_checker": False,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
        "vae": ["diffusers", type(vae).__name__],
    }
    if text is not None:
        encoder, tokenizer = text
        copy.deepcopy(encoder).half().save_pretrained(partial / "text_encoder")
        tokenizer.save_pretrained(partial / "tokenizer")
        index["text_encoder"] = ["transformers", type(encoder).__name__]
        index["tokenizer"] = ["transformers", type(tokenizer).__name__]
    _drop_fields(partial / "vae" / "config.json", "block_out_channels", "_name_or_path")
    _drop_fields(partial / "unet" / "config.json", "_name_or_path")
    scheduler.save_pretrained(partial / "scheduler")
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    model_settings = {
        "tau": list(tau),
        "timestep": timestep,
        "method": list(method),
        "resolution": unet.config.sample_size * 8,
        "trained_on": trained_on,
        "recipe": {**recipe, "torch": torch.__version__},
    }
    (partial / "diffseg.json").write_text(json.dumps(model_settings, indent=2) + "\n")
    _replace(folder, partial)


def _replace(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`, and delete the previous folder of that name."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _drop_fields(path: Path, *names: str) -> None:
    """Remove fields from the configuration of a part: a path, and one that AutoencoderTiny warns about on loading."""
    config = json.loads(path.read_text())
    for name in names:
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n")
