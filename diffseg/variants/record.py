"""Vary images by the noise that is added to their latents, and record how each position responds.

All positions see independent noise, so two of them respond alike where the network mixes the same positions into both:
self-attention does that inside a segment. So the response is that of the output of a self-attention layer. The residual
stream around it, which carries each position's own noise, separates nothing (docs/quality.md).

Axes: B images in the batch, V variants, P = h·w positions, D channels of the layer, E values of a unit vector.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn.functional import normalize

from diffseg.attention.layers import AttentionLayer, attention_layers
from diffseg.attention.maps import Grid
from diffseg.attention.processor import PassComplete
from diffseg.devices import to_device
from diffseg.model.backbone import Backbone
from diffseg.model.conditioning import noise_to_signal

PROJECTED = 256
"""Most values of a unit vector. A random projection to so many changes a correlation by about 1 / √256."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VariantResponse:
    """How the positions of a batch of images respond to noise.

    Attributes:
        units: float32 [B, P, E]. The product of the vectors of two positions is the correlation of their features over
            the variants. A position that never changes, or an image that is not finite, has the vector 0.
        grid: Height and width of the positions, in tokens.
        finite: bool [B], whether all features of an image are finite.
    """

    units: torch.Tensor
    grid: Grid
    finite: torch.Tensor

    def of_images(self, start: int, stop: int) -> VariantResponse:
        """Return the response of the images from `start` up to `stop` of the batch, as views."""
        part = slice(start, stop)
        return VariantResponse(units=self.units[part], grid=self.grid, finite=self.finite[part])


def response_layer(unet: UNet2DConditionModel) -> AttentionLayer:
    """Return the first self-attention layer of the finest resolution in the up blocks.

    Raises:
        ValueError: The up blocks have no self-attention.
    """
    layers = [layer for layer in attention_layers(unet) if not layer.module.is_cross_attention]
    up = [layer for layer in layers if layer.name.startswith("up_blocks.")]
    if not up:
        raise ValueError("the up blocks of this UNet have no self-attention, whose output variants are compared by")
    return min(up, key=lambda layer: layer.level)


@torch.inference_mode()
def record_variants(backbone: Backbone, pixels: torch.Tensor, *, variants: int, timestep: int) -> VariantResponse:
    """Run one unconditional pass for each variant, up to the layer whose output is recorded.

    The noise of variant v is that of torch's CPU generator with the seed v, the same for all images: it depends on
    nothing but the settings and the resolution.

    Args:
        backbone: VAE encoder and UNet, which are not compiled: compiled graphs call no hooks.
        pixels: float32 [B, 3, S, S] in [−1, 1].
        variants: V, 2 or more.
        timestep: Diffusion timestep, which determines how much noise is added, 0 to 999.
    """
    checkpoint, latents = backbone.checkpoint, backbone.latents(pixels)
    context = checkpoint.context.expand(len(pixels), -1, -1)
    layer, outputs = response_layer(checkpoint.unet), list[torch.Tensor]()

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        outputs.append(output)
        raise PassComplete

    handle = layer.module.register_forward_hook(keep)
    sums: ResponseSum | None = None
    try:
        for variant in range(variants):
            noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(variant))
            noisy = add_noise(latents, to_device(noise, latents.device), timestep, checkpoint.sigma_data)
            inputs = backbone.inputs(noisy, timestep, checkpoint.added)
            with suppress(PassComplete):
                checkpoint.unet(inputs.latents, inputs.timesteps, encoder_hidden_states=context, **inputs.options)
            features = outputs.pop().float()
            sums = sums or ResponseSum(features, variants)
            sums.add(features)
    finally:
        handle.remove()
    assert sums is not None
    units = sums.units()
    rows = round((units.shape[1] * pixels.shape[-2] / pixels.shape[-1]) ** 0.5)
    finite = sums.total.isfinite().flatten(1).all(dim=1)
    return VariantResponse(
        units=torch.where(finite[:, None, None], units, 0), grid=(rows, units.shape[1] // rows), finite=finite
    )


def add_noise(latents: torch.Tensor, noise: torch.Tensor, timestep: int, sigma_data: float | None) -> torch.Tensor:
    """Add noise to scaled latents as the network was trained with it, in float32; returns the dtype of the latents.

    Args:
        latents: [B, 4, h, w].
        noise: float32 [4, h, w] of unit variance.
        timestep: Diffusion timestep of Stable Diffusion, 0 to 999.
        sigma_data: See `diffseg.model.checkpoint.Checkpoint`.
    """
    ratio = noise_to_signal(timestep)
    if sigma_data is not None:  # the variance of the signal stays as it is
        return (latents.float() + sigma_data * ratio * noise).to(latents.dtype)
    return ((latents.float() + ratio * noise) / (1 + ratio**2) ** 0.5).to(latents.dtype)


class ResponseSum:
    """Sums up the variants' features, centred over the variants at each position, without keeping the features.

    The vector of a position has V·D values, the features of all variants one after the other. It is multiplied by a
    fixed random matrix with `PROJECTED` columns; fewer values than that are kept as they are.

    Attributes:
        total: float32 [B, P, E], the sum over the variants so far, of the differences from the first variant.
    """

    def __init__(self, first: torch.Tensor, variants: int) -> None:
        """Prepare the sum of `variants` features, of which `first`, float32 [B, P, D], is the first one."""
        self._first, self._variants, self._added = first, variants, 0
        self._mean = torch.zeros_like(first)
        self._size = min(PROJECTED, variants * first.shape[2])
        self.total = first.new_zeros(*first.shape[:2], self._size)
        self._weights = first.new_zeros(first.shape[2], self._size)

    def add(self, features: torch.Tensor) -> None:
        """Add the features of the next variant, float32 [B, P, D]."""
        weights = to_device(self._projection(self._added, features.shape[2]), features.device)
        # The differences are small beside the features, so the first variant is subtracted before they are summed up.
        difference = features - self._first
        self.total += difference @ weights
        self._mean += difference / self._variants
        self._weights += weights
        self._added += 1

    def units(self) -> torch.Tensor:
        """Return the unit vectors, float32 [B, P, E]. Vectors of positions that do not change are 0."""
        return normalize(self.total - self._mean @ self._weights, dim=2)

    def _projection(self, variant: int, channels: int) -> torch.Tensor:
        if self._size == self._variants * channels:
            return torch.eye(self._size)[variant * channels : (variant + 1) * channels]
        return torch.randn(channels, self._size, generator=torch.Generator().manual_seed(variant)) / self._size**0.5
