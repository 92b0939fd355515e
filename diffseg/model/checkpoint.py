"""Load what DiffSeg needs of a Stable Diffusion checkpoint: the VAE encoder, the UNet, the empty prompt's embedding."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffseg.model.files import VAE_FILES, fingerprint
from diffseg.model.layout import CheckpointError, check_part, load_part, read_json, resolve
from diffseg.model.text import ADDED_SDXL, TextEncoders, load_text_encoders
from diffseg.settings import StageName

LATENT_CHANNELS, LATENT_PIXELS = 4, 8
AUTOENCODERS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
PAPER_TAU, PAPER_TIMESTEP = (1.1, 1.1, 1.1), 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The parts in memory.

    vae: encoder only. unet: its transformer blocks are what is recorded. context: [1, tokens, D], the empty prompt's
    embedding. added: the further conditioning of SDXL, each [1, …]. tau, timestep, resolution, method: the checkpoint's
    own settings for DiffSeg where its folder has a diffseg.json, else the paper's and the trained size in pixels.
    text: what embeds other prompts, where that was asked for.
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
    """Load `tiny`, a local diffusers folder or a hub id (at a revision) of any 4-channel Stable Diffusion.

    vae: a folder or hub id of an autoencoder, or of a checkpoint with one, to use in the place of the model's own. It
    is kept in float32 where `dtype` is float16, whose range its activations leave. text: keep the text encoders.
    Raises CheckpointError where a part is missing or of another kind.
    """
    folder = resolve(model, revision)
    own = read_json(folder / "diffseg.json") if (folder / "diffseg.json").is_file() else {}
    unet_variant = check_part(folder, "unet", ("UNet2DConditionModel",))
    unet_config = read_json(folder / "unet" / "config.json")
    _check_channels("unet", model, "in_channels", unet_config)
    if unet_config.get("addition_embed_type") not in (None, ADDED_SDXL):
        found = unet_config["addition_embed_type"]
        raise CheckpointError(f"unet of {model}: addition_embed_type is {found}; expected none or {ADDED_SDXL}")
    resolution = own.get("resolution", _trained_side(unet_config, model))
    encoder, sha256 = _load_vae(folder, torch.float32 if dtype == torch.float16 else dtype, vae)
    unet = load_part(folder, "unet", UNet2DConditionModel, torch_dtype=dtype, variant=unet_variant)
    encoders = load_text_encoders(folder, unet, resolution)
    if text and not encoders.parts:
        raise CheckpointError(
            f"{model}: has no text encoder, which names need; the embedded model with one is tiny-text"
        )
    empty = encoders.embed("")
    return Checkpoint(
        name=str(model) if revision is None else f"{model}@{revision}",
        sha256=sha256,
        vae=for_inference(encoder, device),
        unet=for_inference(unet, device),
        context=empty.context.to(device, dtype),
        added={name: value.to(device, dtype) for name, value in empty.added.items()},
        tau=tuple(own.get("tau", PAPER_TAU)),
        timestep=int(own.get("timestep", PAPER_TIMESTEP)),
        resolution=resolution,
        method=tuple(own.get("method", ("diffseg",))),
        text=encoders.on(device) if text else None,
    )


def _load_vae(folder: Path, dtype: torch.dtype, other: str | os.PathLike[str] | None) -> tuple[Any, str]:
    """The encoder of a checkpoint, or of another one in its place, and the digest of all that is read of both."""
    part, name = "vae", str(folder)
    if other is None:
        sha256 = fingerprint(folder)
    else:
        own, folder, name = folder, resolve(other, files=VAE_FILES), str(other)
        part = "vae" if (folder / "vae").is_dir() else ""
        sha256 = fingerprint(own, vae=folder)
    variant = check_part(folder, part, tuple(AUTOENCODERS))
    config = read_json(folder / part / "config.json")
    _check_channels("vae", name, "latent_channels", config)
    unused = ("decoder.", "post_quant_conv.")
    kind = AUTOENCODERS[config["_class_name"]]
    encoder = load_part(folder, part, kind, unused=unused, torch_dtype=dtype, variant=variant)
    encoder.decoder = encoder.post_quant_conv = None
    return encoder, sha256


def _check_channels(part: str, model: str | os.PathLike[str], key: str, config: dict[str, Any]) -> None:
    found = config.get(key)
    if found != LATENT_CHANNELS:
        raise CheckpointError(
            f"{part} of {model}: {key} is {found}; DiffSeg needs a text-to-image Stable Diffusion with 4"
        )


def for_inference(model: Any, device: str) -> Any:
    """On the device, with the channels of a pixel side by side, which convolutions read faster on CPUs and CUDA."""
    model = model.eval().requires_grad_(False).to(device)
    return model.to(memory_format=torch.channels_last) if model.device.type in ("cpu", "cuda") else model


def _trained_side(unet_config: dict[str, Any], model: str | os.PathLike[str]) -> int:
    """Side in pixels of the images that the UNet was trained on."""
    side = unet_config.get("sample_size")
    if not isinstance(side, int):
        raise CheckpointError(f"unet of {model}: looked for the side of its latents; sample_size is {side}")
    return side * LATENT_PIXELS
