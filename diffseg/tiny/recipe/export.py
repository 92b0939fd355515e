"""Write the embedded model as a diffusers Stable Diffusion folder, in half precision."""

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

__all__ = ["CHECKPOINT", "TRAINED_ON", "export"]

TRAINED_ON = "procedurally generated images only (diffseg.tiny.scenes.scenes); no photograph, no human label"


def export(
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
    """Write `folder` in the layout of StableDiffusionPipeline; an existing one is replaced whole.

    Args:
        vae: float32, with its scaling_factor set.
        unet: float32, with its exported weights.
        scheduler: only its configuration is written.
        folder: to write; its parent must exist.
        recipe: settings, seed and steps, for the record.
        tau: merging thresholds for this model, one per round: the paper's merge nearly everything here.
        timestep: at which the thresholds were tuned.
        method: stages that are the default with this model.
        trained_on: what the weights have seen.
        text: encoder, float32, and tokenizer of a model that reads text.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    for name, part in (("vae", vae), ("unet", unet)):
        copy.deepcopy(part).half().save_pretrained(aside / name, safe_serialization=True)
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
        copy.deepcopy(encoder).half().save_pretrained(aside / "text_encoder")
        tokenizer.save_pretrained(aside / "tokenizer")
        index["text_encoder"] = ["transformers", type(encoder).__name__]
        index["tokenizer"] = ["transformers", type(tokenizer).__name__]
    _drop_derived_field(aside / "vae" / "config.json")
    scheduler.save_pretrained(aside / "scheduler")
    (aside / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    notes = {
        "tau": list(tau),
        "timestep": timestep,
        "method": list(method),
        "resolution": unet.config.sample_size * 8,
        "trained_on": trained_on,
        "recipe": {**recipe, "torch": torch.__version__},
    }
    (aside / "diffseg.json").write_text(json.dumps(notes, indent=2) + "\n")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _drop_derived_field(path: Path) -> None:
    """AutoencoderTiny writes a field that it warns about when it reads it back."""
    config = json.loads(path.read_text())
    config.pop("block_out_channels", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
