"""Load what DiffSeg needs of a Stable Diffusion checkpoint: VAE encoder, UNet and the empty prompt's embedding."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffseg.model.files import VAE_FILES, fingerprint
from diffseg.model.layout import CheckpointError, check_part, load_part, read_json, resolve
from diffseg.model.text import TextEncoders
from diffseg.model.text_encoders import ADDED_SDXL, load_text_encoders
from diffseg.settings import StageName

LATENT_CHANNELS, LATENT_PIXELS = 4, 8
"""Channels of the latents, and image pixels per side of a latent position."""

AUTOENCODERS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
PAPER_TAU, PAPER_TIMESTEP = (1.1, 1.1, 1.1), 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The parts of a checkpoint in memory, and its own settings for DiffSeg.

    The settings come from the checkpoint's diffseg.json. Without that file they are the paper's, and the resolution is
    the size that the UNet was trained at.

    Attributes:
        name: What the user named, with the revision after an @.
        sha256: Digest of all files that were read.
        vae: The autoencoder, without its decoder.
        unet: The UNet, whose transformer blocks are recorded.
        context: [1, tokens, D], the embedding of the empty prompt.
        tau: Merging threshold of each round, in nats.
        timestep: Diffusion timestep of the pass.
        resolution: Side of the input square in pixels.
        method: Stages of the method.
        added: Further conditioning of SDXL, each [1, …].
        text: Encoders of other prompts; None unless they were requested.
    """

    name: str
    sha256: str
    vae: Any
    unet: UNet2DConditionModel
    context: torch.Tensor
    tau: tuple[float, ...]
    timestep: int
    resolution: int
    method: tuple[StageName, ...] = ("diffseg",)
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    text: TextEncoders | None = None


def load_checkpoint(
    model: str | os.PathLike[str] = "tiny",
    *,
    revision: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    text: bool = False,
) -> Checkpoint:
    """Load any Stable Diffusion checkpoint with 4 latent channels.

    Args:
        model: An embedded model, a local diffusers folder or a hub id.
        revision: Branch, tag or commit of the hub id.
        vae: Folder or hub id of an autoencoder, or of a checkpoint that has one, to use instead of the model's own.
        device: Torch device.
        dtype: Dtype of the weights. With float16 the VAE stays in float32, because its activations exceed the range
            of float16.
        text: Keep the text encoders.

    Raises:
        CheckpointError: A part is missing or of another kind.
    """
    folder = resolve(model, revision)
    settings = read_json(folder / "diffseg.json") if (folder / "diffseg.json").is_file() else {}
    unet_variant = check_part(folder, "unet", ("UNet2DConditionModel",))
    unet_config = read_json(folder / "unet" / "config.json")
    _check_unet(unet_config, model)
    resolution = settings.get("resolution", _trained_side(unet_config, model))
    encoder, sha256 = _load_vae(folder, torch.float32 if dtype == torch.float16 else dtype, vae)
    unet = load_part(folder, "unet", UNet2DConditionModel, torch_dtype=dtype, variant=unet_variant)
    encoders = load_text_encoders(folder, unet, resolution)
    if text and not encoders.parts:
        raise CheckpointError(
            f"{model}: has no text encoder, which is needed to read names; the embedded model with one is tiny-text"
        )
    empty = encoders.embed("")
    return Checkpoint(
        name=str(model) if revision is None else f"{model}@{revision}",
        sha256=sha256,
        vae=for_inference(encoder, device),
        unet=for_inference(unet, device),
        context=empty.context.to(device, dtype),
        added={name: value.to(device, dtype) for name, value in empty.added.items()},
        tau=tuple(settings.get("tau", PAPER_TAU)),
        timestep=int(settings.get("timestep", PAPER_TIMESTEP)),
        resolution=resolution,
        method=tuple(settings.get("method", ("diffseg",))),
        text=encoders.on(device) if text else None,
    )


def _load_vae(folder: Path, dtype: torch.dtype, other: str | os.PathLike[str] | None) -> tuple[Any, str]:
    """Return the encoder of a checkpoint, or of `other` instead, and the digest of all files that are read of both."""
    part, name = "vae", str(folder)
    if other is None:
        sha256 = fingerprint(folder)
    else:
        vae_folder, name = resolve(other, files=VAE_FILES), str(other)
        sha256 = fingerprint(folder, vae=vae_folder)
        folder, part = vae_folder, "vae" if (vae_folder / "vae").is_dir() else ""
    variant = check_part(folder, part, tuple(AUTOENCODERS))
    config = read_json(folder / part / "config.json")
    _check_channels("vae", name, "latent_channels", config)
    unused = ("decoder.", "post_quant_conv.")
    vae_class = AUTOENCODERS[config["_class_name"]]
    encoder = load_part(folder, part, vae_class, unused=unused, torch_dtype=dtype, variant=variant)
    encoder.decoder = encoder.post_quant_conv = None
    return encoder, sha256


def _check_unet(config: dict[str, Any], model: str | os.PathLike[str]) -> None:
    _check_channels("unet", model, "in_channels", config)
    embed_type = config.get("addition_embed_type")
    if embed_type not in (None, ADDED_SDXL):
        raise CheckpointError(f"unet of {model}: addition_embed_type is {embed_type}; expected none or {ADDED_SDXL}")


def _check_channels(part: str, model: str | os.PathLike[str], key: str, config: dict[str, Any]) -> None:
    channels = config.get(key)
    if channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"{part} of {model}: {key} is {channels}; DiffSeg needs a text-to-image Stable Diffusion with 4"
        )


def for_inference(model: Any, device: str) -> Any:
    """Freeze a model and move it to a device, in the channels-last layout on CPUs and CUDA, where it is faster."""
    model = model.eval().requires_grad_(False).to(device)
    return model.to(memory_format=torch.channels_last) if model.device.type in ("cpu", "cuda") else model


def _trained_side(unet_config: dict[str, Any], model: str | os.PathLike[str]) -> int:
    """Return the side in pixels of the images that the UNet was trained on."""
    side = unet_config.get("sample_size")
    if not isinstance(side, int):
        raise CheckpointError(f"unet of {model}: expected the side of its latents, but sample_size is {side}")
    return side * LATENT_PIXELS
