"""Load what DiffSeg needs of a Stable Diffusion checkpoint: autoencoder, UNet and the empty prompt's embedding."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffseg.attention.layers import self_attention_layers
from diffseg.devices import fastest_memory_format
from diffseg.model.config_fields import DIFFSEG_FIELDS, check_unet, check_vae
from diffseg.model.config_rules import check_config
from diffseg.model.files import CHECKPOINT_FILES, GENERATING_FILES, VAE_FILES, fingerprint
from diffseg.model.layout import CheckpointError, check_part, load_part, read_json, resolve, weights_variant
from diffseg.model.single_file import SingleFile
from diffseg.model.text import TextEncoders
from diffseg.model.text_encoders import load_text_encoders
from diffseg.settings import Dtype, StageName

LATENT_PIXELS = 8
"""Image pixels per side of a latent position."""

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
        vae: The autoencoder, without its decoder unless that was requested.
        unet: The UNet, whose transformer blocks are recorded.
        context: [1, tokens, D], the embedding of the empty prompt.
        tau: Merging threshold of each round, in nats.
        timestep: Diffusion timestep of the pass.
        resolution: Side of the input square in pixels.
        method: Stages of the method.
        added: Further conditioning of SDXL (text_embeds), each [1, …].
        text: Encoders of other prompts; None unless they were requested.
        sigma_data: Standard deviation of the latents in the formulation of EDM; None for a network that is not in it.
        scheduler: Configuration of the checkpoint's own sampling method; for a single file, the differences from that
            of Stable Diffusion. Empty if the checkpoint has none, or if the decoder was not requested.
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
    sigma_data: float | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def load_checkpoint(
    model: str | os.PathLike[str] = "tiny",
    *,
    revision: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    text: bool = False,
    decoder: bool = False,
) -> Checkpoint:
    """Load any Stable Diffusion checkpoint with 4 latent channels.

    Args:
        model: An embedded model, a local diffusers folder, a single .safetensors file in the original layout of SD 1.x,
            SD 2.x or SDXL, or a hub id.
        revision: Branch, tag or commit of the hub id.
        vae: Folder or hub id of an autoencoder, or of a checkpoint that has one, to use instead of the model's own.
        device: Torch device.
        dtype: Dtype of the weights. With float16 the VAE stays in float32, because its activations exceed the range
            of float16.
        text: Keep the text encoders.
        decoder: Keep the decoder of the autoencoder, and read the configuration of the sampling method, which is then
            part of the digest.

    Raises:
        CheckpointError: A part is missing or of another kind.
    """
    precision = _dtype_name(dtype)
    location = resolve(model, revision, GENERATING_FILES if decoder else CHECKPOINT_FILES, precision)
    load = _load_single_file if location.is_file() else _load_folder
    other_vae = None if vae is None else resolve(vae, files=VAE_FILES, dtype=precision)
    parts = load(location, dtype, other_vae, decoder=decoder)
    if text and not parts.encoders.parts:
        raise CheckpointError(
            f"{model}: has no text encoder, which is needed to read names; the embedded model with one is tiny-text"
        )
    empty = parts.encoders.embed("")
    return Checkpoint(
        name=str(model) if revision is None else f"{model}@{revision}",
        sha256=parts.sha256,
        vae=for_inference(parts.vae, device),
        unet=for_inference(parts.unet, device),
        context=empty.context.to(device, dtype),
        added={name: value.to(device, dtype) for name, value in empty.added.items()},
        tau=tuple(parts.settings.get("tau", PAPER_TAU)),
        timestep=parts.settings.get("timestep", PAPER_TIMESTEP),
        resolution=parts.resolution,
        method=tuple(parts.settings.get("method", ("diffseg",))),
        text=parts.encoders.on(device) if text else None,
        sigma_data=sigma_data_of(parts.vae) if parts.is_edm else None,
        scheduler=parts.scheduler,
    )


class _Parts(NamedTuple):
    """What is read of a checkpoint: its own settings for DiffSeg, and the models on the CPU."""

    sha256: str
    settings: dict[str, Any]
    resolution: int
    vae: Any
    unet: UNet2DConditionModel
    encoders: TextEncoders
    is_edm: bool
    scheduler: Mapping[str, Any]


def _load_folder(folder: Path, dtype: torch.dtype, other_vae: Path | None, *, decoder: bool) -> _Parts:
    """Load a checkpoint in the diffusers layout, with the autoencoder of another folder if there is one."""
    settings = read_json(folder / "diffseg.json") if (folder / "diffseg.json").is_file() else {}
    check_config(folder / "diffseg.json", settings, DIFFSEG_FIELDS)
    config = check_part(folder, "unet", ("UNet2DConditionModel",))
    check_unet(folder / "unet" / "config.json", config)
    files = GENERATING_FILES if decoder else CHECKPOINT_FILES
    sha256 = fingerprint(folder, files, vae=other_vae, dtype=_dtype_name(dtype))
    vae = _load_vae(other_vae or folder, dtype, decoder=decoder)
    variant = weights_variant(folder / "unet", f"unet of {folder}", CHECKPOINT_FILES.part("unet"), _dtype_name(dtype))
    unet = load_part(folder, "unet", UNet2DConditionModel, torch_dtype=dtype, variant=variant)
    _check_attention(unet, folder)
    resolution = settings.get("resolution", config["sample_size"] * LATENT_PIXELS)
    encoders = load_text_encoders(folder, unet, _dtype_name(dtype))
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(scheduler_file) if decoder and scheduler_file.is_file() else {}
    return _Parts(sha256, settings, resolution, vae, unet, encoders, _is_edm(folder, vae), scheduler)


def _load_single_file(file: Path, dtype: torch.dtype, other_vae: Path | None, *, decoder: bool) -> _Parts:
    """Load a checkpoint in a single file, with the autoencoder of a folder if there is one."""
    checkpoint = SingleFile.read(file)
    vae_dtype = _vae_dtype(dtype)
    vae = (
        checkpoint.vae(vae_dtype, decoder=decoder)
        if other_vae is None
        else _load_vae(other_vae, dtype, decoder=decoder)
    )
    unet = checkpoint.unet(dtype)
    resolution = unet.config.sample_size * LATENT_PIXELS
    sha256 = fingerprint(file, vae=other_vae, dtype=_dtype_name(dtype))
    scheduler = checkpoint.scheduler if decoder else {}
    return _Parts(sha256, {}, resolution, vae, unet, checkpoint.text_encoders(unet), checkpoint.is_edm, scheduler)


def sigma_data_of(vae: Any) -> float:
    """Return the standard deviation of scaled latents.

    Where an autoencoder has a mean and a standard deviation of each channel, latents are standardised before they are
    multiplied by the scaling factor, which is then their standard deviation: 0.5 in Playground v2.5. Elsewhere the
    scaling factor makes it 1, as CosXL expects.
    """
    return 1.0 if vae.config.get("latents_std") is None else vae.config.scaling_factor


def _is_edm(folder: Path, vae: Any) -> bool:
    """Return whether the network is in the formulation of EDM, by the name of its scheduler in model_index.json.

    Raises:
        CheckpointError: The scheduler's configuration is there and does not fit the autoencoder.
    """
    index = folder / "model_index.json"
    scheduler = read_json(index).get("scheduler", ["", ""])[1] if index.is_file() else None
    if not (scheduler or "").startswith("EDM"):
        return False
    config = folder / "scheduler" / "scheduler_config.json"  # not read from the hub: no digest of a model includes it
    expected = read_json(config).get("sigma_data", 0.5) if config.is_file() else sigma_data_of(vae)
    if expected != sigma_data_of(vae):
        raise CheckpointError(
            f"{config}: sigma_data is {expected!r}, but the latents of the autoencoder have a standard deviation of "
            f"{sigma_data_of(vae):g}; expected the same value, as in Playground v2.5"
        )
    return True


def _load_vae(folder: Path, dtype: torch.dtype, *, decoder: bool) -> Any:
    """Return an autoencoder that lies in a folder, or in the folder `vae` below it, with or without its decoder."""
    part = "vae" if (folder / "vae").is_dir() or (folder / "unet").is_dir() else ""
    config = check_part(folder, part, tuple(AUTOENCODERS))
    check_vae(folder / part / "config.json", config)
    variant = weights_variant(folder / part, f"vae of {folder}", VAE_FILES.part("vae"), _dtype_name(dtype))
    unused = () if decoder else ("decoder.", "post_quant_conv.")
    vae_class = AUTOENCODERS[config["_class_name"]]
    vae = load_part(folder, part, vae_class, unused=unused, torch_dtype=_vae_dtype(dtype), variant=variant)
    if not decoder:
        vae.decoder = vae.post_quant_conv = None
    return vae


def _check_attention(unet: UNet2DConditionModel, folder: Path) -> None:
    if not self_attention_layers(unet):
        raise CheckpointError(
            f"unet of {folder}: has no self-attention; DiffSeg needs the transformer blocks of Stable Diffusion"
        )


def _vae_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _dtype_name(dtype: torch.dtype) -> Dtype:
    return cast(Dtype, str(dtype).removeprefix("torch."))


def for_inference(model: Any, device: str) -> Any:
    """Freeze a model and move it to a device, in the memory layout that is the fastest there."""
    model = model.eval().requires_grad_(False).to(device)
    return model.to(memory_format=fastest_memory_format(model.device))
