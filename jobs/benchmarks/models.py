"""Models to measure: any checkpoint, or the layouts of SD 1.5 and SDXL with random weights, which need no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffseg.model.checkpoint import PAPER_TIMESTEP, Checkpoint, for_inference, load_checkpoint
from diffseg.model.layout import EMBEDDED
from diffseg.model.text import TextEncoders
from diffseg.settings import Dtype

SD15, SDXL = "sd15-random", "sdxl-random"
PROMPT_TOKENS = 77
RANDOM_TAU = (1e-3, 1e-3, 1e-3)
"""Merging thresholds for random weights. Their attention is almost uniform, and these give some tens of segments."""


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """A model with random weights.

    Attributes:
        unet: Configuration of the UNet.
        vae: Configuration of the autoencoder; its `sample_size` is the side of the model's square.
        added: Widths of further conditioning by name.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    added: Mapping[str, int] = field(default_factory=dict)


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
RANDOM_MODELS: dict[str, RandomModel] = {
    SD15: RandomModel(unet=SD15_UNET, vae=SD15_VAE),
    SDXL: RandomModel(
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "layers_per_block": 2,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=SD15_VAE | {"sample_size": 1024},
        added={"text_embeds": 1280},
    ),
}
"""The layouts of SD 1.5 and of SDXL, by the names that `checkpoint_of` knows."""


def checkpoint_of(
    model: str, *, dtype: Dtype, device: str, text: bool = False, decoder: bool = False, small: bool = False
) -> Checkpoint:
    """Load a model to measure.

    Args:
        model: As in `diffseg label --model`, or a name of `RANDOM_MODELS`.
        dtype: The type of the weights.
        device: The device of the weights.
        text: Whether to load the text encoders too; for `SDXL` there are none.
        decoder: Whether to keep the decoder of the autoencoder.
        small: Whether to make models with random weights tiny, to try a measurement.
    """
    torch_dtype = getattr(torch, dtype)
    if model not in RANDOM_MODELS:
        return load_checkpoint(model, device=device, dtype=torch_dtype, text=text, decoder=decoder)
    spec = _tiny(RANDOM_MODELS[model]) if small else RANDOM_MODELS[model]
    torch.manual_seed(0)
    with torch.device(device):  # weights of some gigabytes are drawn in a moment there
        vae = AutoencoderKL(**spec.vae)
        unet = UNet2DConditionModel(**spec.unet)
    if not decoder:
        vae.decoder = vae.post_quant_conv = None
    options: dict[str, Any] = {"dtype": torch_dtype, "device": device}
    return Checkpoint(
        name=model,
        sha256="",
        vae=for_inference(_cast(vae, torch.float32 if dtype == "float16" else torch_dtype), device),
        unet=for_inference(_cast(unet, torch_dtype), device),
        context=torch.zeros(1, PROMPT_TOKENS, spec.unet["cross_attention_dim"], **options),
        added={name: torch.zeros(1, width, **options) for name, width in spec.added.items()},
        tau=RANDOM_TAU,
        timestep=PAPER_TIMESTEP,
        resolution=spec.vae["sample_size"],
        text=_sd15_text(device) if text and model == SD15 else None,
    )


def _tiny(spec: RandomModel) -> RandomModel:
    """Return a model of the same layout with few channels and layers, and squares of 64 pixels."""
    unet = dict(spec.unet) | {"block_out_channels": (32,) * len(spec.unet["block_out_channels"]), "sample_size": 8}
    unet |= {"attention_head_dim": 2, "layers_per_block": 1}
    if "transformer_layers_per_block" in unet:
        unet["transformer_layers_per_block"] = 1
    vae = dict(spec.vae) | {"block_out_channels": (32,) * 4, "layers_per_block": 1, "sample_size": 64}
    return RandomModel(unet=unet, vae=vae, added=spec.added)


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


def dtype_name(checkpoint: Checkpoint) -> Dtype:
    """Return the type of the UNet's weights."""
    name: Dtype = str(checkpoint.unet.dtype).removeprefix("torch.")  # type: ignore[assignment]
    return name


def parameters(checkpoint: Checkpoint) -> int:
    """Count the parameters of the VAE encoder and the UNet."""
    return sum(weight.numel() for part in (checkpoint.vae, checkpoint.unet) for weight in part.parameters())
