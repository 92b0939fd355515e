"""The embedded network with random weights: the control that shows how much of a score is due to training."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny

from diffseg.tiny.recipe.export import export_checkpoint
from diffseg.tiny.recipe.model import build_networks
from diffseg.tiny.recipe.text_model import build_text_encoder, build_text_unet, build_tokenizer
from diffseg.tiny.recipe.tokenizer import caption_tokenizer

__all__ = ["UNTRAINED_TAU", "write_untrained"]

UNTRAINED_TAU = (0.001, 0.001, 0.001)
"""Merging thresholds that suit the untrained network best.

They were tuned on validation scenes (`diffseg.tiny.evaluation.tune_baselines`), so that this baseline is at its best.
"""


def write_untrained(folder: Path, checkpoint: Path, *, seed: int) -> None:
    """Write a checkpoint with the networks of another one but with random weights.

    The VAE remains trained, which can only help this baseline.

    Args:
        folder: Folder to write.
        checkpoint: Embedded checkpoint, with or without a text encoder.
        seed: Seed of the random weights.
    """
    _, unet, scheduler = build_networks(seed)
    vae = AutoencoderTiny.from_pretrained(checkpoint / "vae", use_safetensors=True)
    text = None
    if (checkpoint / "text_encoder").is_dir():
        words = caption_tokenizer()
        unet, text = build_text_unet(unet, seed), (build_text_encoder(words, seed), build_tokenizer(words))
    export_checkpoint(vae, unet, scheduler, folder, recipe={"untrained": True, "seed": seed}, text=text)
