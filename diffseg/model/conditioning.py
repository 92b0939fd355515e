"""What a pass tells the UNet besides latents and text: image size, guidance scale, and the noise level of EDM.

Axes: B images in the batch, W features of an embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

GUIDANCE_SCALE = 8.5
"""Guidance scale that latent consistency models receive, which is the default of diffusers' pipeline for them. They
were trained on scales of about 3 to 15. With the empty prompt guidance changes nothing that they were to predict."""

FIRST_BETA, LAST_BETA, TRAINING_STEPS = 0.00085, 0.012, 1000
"""The noise schedule of Stable Diffusion 1.x, 2.x and XL: the square roots of beta are equally spaced."""


class Preconditioned(NamedTuple):
    """How a network in the formulation of EDM reads latents without added noise (Karras et al., 2022, equation 7).

    Attributes:
        scale: Factor of the latents, c_in = 1 / √(σ² + σ_data²).
        timestep: What the network reads as its timestep, c_noise = ¼ ln σ.
    """

    scale: float
    timestep: float


def size_conditioning(height: int, width: int) -> torch.Tensor:
    """Return SDXL's `time_ids` of an image that is not cropped, float32 [1, 6]: original size, corner, target size."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)


def guidance_embedding(width: int, scale: float = GUIDANCE_SCALE) -> torch.Tensor:
    """Return the embedding of a guidance scale, as diffusers' `get_guidance_scale_embedding`, float32 [1, W].

    Args:
        width: W, the UNet's `time_cond_proj_dim`, 4 or more.
        scale: Guidance scale; 1 is no guidance.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = (scale - 1) * 1000 * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


def precondition(timestep: int, sigma_data: float) -> Preconditioned:
    """Return how an EDM network reads latents at the signal-to-noise ratio of a timestep of Stable Diffusion.

    The setting `timestep` so means the same noise for every checkpoint. The factor and the network's timestep are those
    of diffusers' EDMEulerScheduler and EDMDPMSolverMultistepScheduler.

    Args:
        timestep: Diffusion timestep, 0 to 999.
        sigma_data: Standard deviation of the latents, σ_data.
    """
    sigma = sigma_data * noise_to_signal(timestep)
    return Preconditioned(scale=1 / math.hypot(sigma, sigma_data), timestep=0.25 * math.log(sigma))


def noise_to_signal(timestep: int) -> float:
    """Return √((1 − ᾱ) / ᾱ) at a timestep of Stable Diffusion, for latents of unit variance."""
    first, last = math.sqrt(FIRST_BETA), math.sqrt(LAST_BETA)
    betas = ((first + (last - first) * step / (TRAINING_STEPS - 1)) ** 2 for step in range(timestep + 1))
    signal = math.prod(1 - beta for beta in betas)
    return math.sqrt((1 - signal) / signal)
