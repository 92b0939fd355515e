"""Models to measure: any checkpoint, or Stable Diffusion 1.5 with random weights, which needs no download."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffseg.model.checkpoint import PAPER_TIMESTEP, Checkpoint, for_inference, load_checkpoint
from diffseg.model.layout import EMBEDDED
from diffseg.model.text import TextEncoders
from diffseg.settings import Dtype

SD15 = "sd15-random"
SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "layers_per_block": 2,
}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
PROMPT_TOKENS = 77
RANDOM_TAU = (1e-3, 1e-3, 1e-3)
"""Merging thresholds for random weights. Their attention is almost uniform, and these give some tens of segments."""


def checkpoint_of(model: str, *, dtype: Dtype, device: str, text: bool = False) -> Checkpoint:
    """Load a model to measure.

    Args:
        model: As in `diffseg label --model`, or `SD15` for Stable Diffusion 1.5 with random weights.
        dtype: The type of the weights.
        device: The device of the weights.
        text: Whether to load the text encoders too.
    """
    torch_dtype = getattr(torch, dtype)
    if model != SD15:
        return load_checkpoint(model, device=device, dtype=torch_dtype, text=text)
    torch.manual_seed(0)
    vae = AutoencoderKL(**SD15_VAE)
    vae.decoder = vae.post_quant_conv = None
    unet = UNet2DConditionModel(**SD15_UNET)
    return Checkpoint(
        name=SD15,
        sha256="",
        vae=for_inference(_cast(vae, torch.float32 if dtype == "float16" else torch_dtype), device),
        unet=for_inference(_cast(unet, torch_dtype), device),
        context=torch.zeros(1, PROMPT_TOKENS, SD15_UNET["cross_attention_dim"], dtype=torch_dtype, device=device),
        tau=RANDOM_TAU,
        timestep=PAPER_TIMESTEP,
        resolution=SD15_VAE["sample_size"],
        text=_sd15_text(device) if text else None,
    )


def _sd15_text(device: str) -> TextEncoders:
    """Make a text encoder of the size of SD 1.5 with random weights, and with the tokenizer of tiny-text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["tiny-text"] / "tokenizer", local_files_only=True)
    width = SD15_UNET["cross_attention_dim"]
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=12
    )
    return TextEncoders(parts=[(tokenizer, CLIPTextModel(config).eval())], width=width).on(device)


def small_autoencoder(checkpoint: Checkpoint) -> Any:
    """Make an encoder of the size of TAESD with random weights, as `--vae` would replace that of the checkpoint."""
    vae = AutoencoderTiny()
    vae.decoder = None
    return for_inference(_cast(vae, checkpoint.vae.dtype), str(checkpoint.vae.device))


def _cast(model: Any, dtype: torch.dtype) -> Any:
    return torch.nn.Module.to(model, dtype)  # diffusers' `to` warns about layers that these models lack


def parameters(checkpoint: Checkpoint) -> int:
    """Count the parameters of the VAE encoder and the UNet."""
    return sum(weight.numel() for part in (checkpoint.vae, checkpoint.unet) for weight in part.parameters())
