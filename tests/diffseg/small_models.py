"""UNets and VAEs with random weights and reduced width, in the architectures of published checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

TEXT_WIDTH = 32
SECOND_TEXT_WIDTH = 48
POOLED_WIDTH = 24

UNETS: dict[str, dict[str, Any]] = {
    # 16 self-attention layers at four resolutions, the same number of heads everywhere
    "sd1": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8, "cross_attention_dim": TEXT_WIDTH},
    # numbers of heads by level (in attention_head_dim, despite its name), linear projections
    "sd2": {
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": (2, 4, 8, 8),
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
    },
    # attention at two resolutions only, with different depths, and added conditioning by text and size
    "sdxl": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": TEXT_WIDTH + SECOND_TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + POOLED_WIDTH,
    },
}


def small_unet(layout: str, *, sample_size: int = 16, sharpness: float = 4.0, **changes: Any) -> UNet2DConditionModel:
    """Return a UNet whose self-attention has peaks; unscaled random weights give nearly uniform maps."""
    config = {"norm_num_groups": 8, "sample_size": sample_size, "in_channels": 4, "out_channels": 4}
    unet = UNet2DConditionModel(**{**config, **UNETS[layout], **changes}).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn1.to_q" in name or "attn1.to_k" in name:
                weight.mul_(sharpness)
    return unet


def small_vae(**changes: Any) -> AutoencoderKL:
    """Return a VAE with 4 latent channels at an eighth of the image's side."""
    config = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 128,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def unet_inputs(layout: str, batch: int = 1, grid: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    """Return keyword arguments of one forward pass, drawn from the global generator."""
    width = UNETS[layout]["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, 4, *grid),
        "timestep": 300,
        "encoder_hidden_states": torch.randn(batch, 7, width),
    }
    if layout == "sdxl":
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(batch, -1)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, POOLED_WIDTH), "time_ids": sizes}
    return inputs
