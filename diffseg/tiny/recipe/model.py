"""The embedded networks: a Stable Diffusion of 4.3 million parameters, built from classes of diffusers.

The UNet has the block layout of Stable Diffusion 1.x. As there, its 16 self-attention layers are distributed 5/5/5/1
over four resolutions. There is no text encoder: the context is always a single zero token.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

__all__ = ["CONTEXT_WIDTH", "build_networks", "empty_context"]

CONTEXT_WIDTH = 16
"""Channels of the context."""
VAE_WIDTH = 16
"""Channels of all layers of the autoencoder."""

OPPONENT = torch.tensor([[0.8, 0.8, 0.8], [3.0, -3.0, 0.0], [-1.5, -1.5, 3.0]])
"""Lightness, red–green and yellow–blue as mixtures of RGB; the gains give the three about equal variance on natural
colours."""
LIGHTNESS_OFFSET = -1.2
"""Offset that centres the lightness of an image of mean grey."""


def build_networks(seed: int) -> tuple[AutoencoderTiny, UNet2DConditionModel, DDIMScheduler]:
    """Build initialised networks on the CPU in float32, without changing the global torch generator.

    Args:
        seed: Seed of the random weights, ≥ 0.

    Returns:
        The VAE (8x downsampling, 4 channels), the UNet (v-prediction) and a scheduler with Stable Diffusion's betas.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(VAE_WIDTH,) * 4,
            decoder_block_out_channels=(VAE_WIDTH,) * 4,
            num_encoder_blocks=(1, 1, 1, 2),
            num_decoder_blocks=(2, 1, 1, 1),
        )
        _preserve_colour(vae)
        unet = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(32, 64, 80, 80),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            attention_head_dim=2,  # diffusers' field of this name holds the number of heads
            norm_num_groups=8,
            cross_attention_dim=CONTEXT_WIDTH,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    return vae.eval(), unet.eval(), scheduler


def empty_context(batch: int) -> Tensor:
    """Return the only context with which the model is trained: zeros, float32 [batch, 1, 16]."""
    return torch.zeros(batch, 1, CONTEXT_WIDTH)


@torch.no_grad()
def _preserve_colour(vae: AutoencoderTiny) -> None:
    """Initialise the VAE to reconstruct the mean colours of 8x8 blocks, so that only texture remains to be learnt.

    Otherwise, a network of this size would spend its few minutes of training on colour.
    """
    for block in [*vae.encoder.layers, *vae.decoder.layers]:
        if hasattr(block, "fuse"):
            nn.init.zeros_(block.conv[-1].weight)
            nn.init.zeros_(block.conv[-1].bias)
    encoder = [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]
    decoder = [layer for layer in vae.decoder.layers if isinstance(layer, nn.Conv2d)]
    _pass_colour(encoder[0], torch.eye(3))
    for halving in encoder[1:-1]:
        _pass_colour(halving, torch.eye(3), taps=(1, 2))
    _pass_colour(encoder[-1], OPPONENT, bias=torch.tensor([LIGHTNESS_OFFSET, 0, 0]))
    inverse = torch.linalg.inv(OPPONENT)
    _pass_colour(decoder[0], inverse, bias=-inverse @ torch.tensor([LIGHTNESS_OFFSET, 0, 0]))
    for layer in decoder[1:]:
        _pass_colour(layer, torch.eye(3))


def _pass_colour(
    layer: nn.Conv2d, mixture: Tensor, *, taps: tuple[int, ...] = (1,), bias: Tensor | None = None
) -> None:
    """Make the first three outputs a mixture of the first three inputs, averaged over the given taps of the kernel."""
    layer.weight[:3] = 0
    for y in taps:
        for x in taps:
            layer.weight[:3, :3, y, x] = mixture / len(taps) ** 2
    if layer.bias is not None:
        layer.bias[:3] = 0 if bias is None else bias
