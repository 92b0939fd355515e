"""The embedded network before it learned anything: the control that tells the training's share of a score."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny

from diffseg.tiny.recipe.export import export_checkpoint
from diffseg.tiny.recipe.model import build_networks
from diffseg.tiny.recipe.text_model import build_text_encoder, build_tokenizer, build_text_unet
from diffseg.tiny.recipe.tokenizer import caption_tokenizer

__all__ = ["UNTRAINED_TAU", "write_untrained"]

# Tuned on validation scenes (diffseg.tiny.evaluation.tune_baselines): the comparison is with the best this baseline can do.
UNTRAINED_TAU = (0.001, 0.001, 0.001)


def write_untrained(folder: Path, checkpoint: Path, *, seed: int) -> None:
    """Write a checkpoint with random weights in the place of all that `checkpoint` has, text encoder or none.

    The VAE stays trained, which can only help this baseline.
    """
    _, unet, scheduler = build_networks(seed)
    vae = AutoencoderTiny.from_pretrained(checkpoint / "vae", use_safetensors=True)
    text = None
    if (checkpoint / "text_encoder").is_dir():
        words = caption_tokenizer()
        unet, text = build_text_unet(unet, seed), (build_text_encoder(words, seed), build_tokenizer(words))
    export_checkpoint(vae, unet, scheduler, folder, recipe={"untrained": True, "seed": seed}, text=text)
