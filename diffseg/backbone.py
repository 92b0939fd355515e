"""One loaded model: images to latents to one UNet pass to self-attention maps.

Axes: B images in the batch, S pixels of a side, h and w of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import AutoencoderTiny

from diffseg.attention import SelfAttention, latent_multiple, record_self_attention
from diffseg.checkpoint import Checkpoint
from diffseg.devices import to_device

Step = Callable[[str], AbstractContextManager]
PIXELS_PER_LATENT = 8


def no_step(name: str) -> AbstractContextManager:
    """A step timer that does nothing."""
    return nullcontext()


class Backbone:
    """The VAE encoder and the UNet of a checkpoint on one device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.pixel_multiple = PIXELS_PER_LATENT * latent_multiple(checkpoint.unet)

    @torch.inference_mode()
    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 4, S/8, S/8] scaled latents of float32 [B, 3, S, S] pixels in [−1, 1]; the posterior's mean."""
        vae = self.checkpoint.vae
        encoded = vae.encode(to_device(pixels, vae.device, vae.dtype))
        raw = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return (raw * vae.config.scaling_factor).to(self.checkpoint.unet.dtype)

    def self_attention(self, pixels: torch.Tensor, timestep: int, step: Step = no_step) -> SelfAttention:
        """One unconditional pass at `timestep` over float32 [B, 3, S, S] pixels in [−1, 1]; no noise is added."""
        check = self.checkpoint
        batch = len(pixels)
        with step("encode"):
            latents = self.latents(pixels)
        with step("unet"):
            context = check.context.expand(batch, -1, -1)
            # as a number it would be copied to a GPU, which would be waited for
            timesteps = torch.full((batch,), timestep, device=latents.device)
            added = {name: value.expand(batch, -1) for name, value in check.added.items()}
            return record_self_attention(
                check.unet, latents, timesteps, encoder_hidden_states=context, added_cond_kwargs=added or None
            )
