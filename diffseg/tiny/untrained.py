"""The embedded network before it learned anything: the control that tells the training's share of a score."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderTiny

from diffseg.tiny.export import export
from diffseg.tiny.model import build

__all__ = ["UNTRAINED_TAU", "write_untrained"]

# Tuned on validation scenes (diffseg.tiny.tune_baselines): the comparison is with the best this baseline can do.
UNTRAINED_TAU = (0.001, 0.001, 0.001)


def write_untrained(folder: Path, checkpoint: Path, *, seed: int) -> None:
    """Write a checkpoint with a UNet of random weights; the VAE stays trained, which can only help this baseline."""
    _, unet, scheduler = build(seed)
    vae = AutoencoderTiny.from_pretrained(checkpoint / "vae", use_safetensors=True)
    export(vae, unet, scheduler, folder, recipe={"untrained": True, "seed": seed})
