"""MaskCLIP's two ways to make dense scores of names less noisy (Zhou, Loy and Dai, ECCV 2022, section 3.3).

Axes: B images, T names, h and w of a grid, P positions of the working grid.
"""

from __future__ import annotations

import torch

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid
from diffseg.devices import to_device


def denoise_names(maps: torch.Tensor, least: float) -> torch.Tensor:
    """Prompt denoising: a name whose share of an image's names is nowhere `least` is taken to be absent, and 0.

    maps: float32 [B, T, h, w], ≥ 0; so is the result. Where that would leave an image without any name, all stay.
    """
    share = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    kept = share.amax(dim=(2, 3)) >= least
    kept |= ~kept.any(dim=1, keepdim=True)
    return torch.where(kept[..., None, None], maps, 0)


def smooth_scores(maps: torch.Tensor, attention: torch.Tensor, finite: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Key smoothing: each position takes the mean of the scores where it looks. float32 [B, T, h, w] on the grid.

    The authors go by how alike the keys of CLIP's last layer are. Stable Diffusion's self-attention, float32 [B, P, P],
    follows objects better; rows sum to 1, so that no score leaves the range of its map. finite: bool [B], images whose
    attention is.
    """
    down, along = (
        to_device(bilinear_matrix(tokens, side), maps.device) for tokens, side in zip(maps.shape[2:], grid, strict=True)
    )
    fine = (down @ maps @ along.T).flatten(2)
    rows = torch.where(finite[:, None, None], attention, 0)
    return (fine @ rows.transpose(1, 2)).unflatten(2, grid)
