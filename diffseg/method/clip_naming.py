"""MaskCLIP's prompt denoising and key smoothing, which make dense scores of names less noisy.

Source: Zhou, Loy and Dai, ECCV 2022, section 3.3.

Axes: B images, T names, h and w of a grid, P positions of the working grid.
"""

from __future__ import annotations

import torch

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid


def denoise_names(maps: torch.Tensor, min_share: float) -> torch.Tensor:
    """Set the scores of names to 0 that are unlikely at every position of an image (prompt denoising).

    A name stays if its share of the scores of all names reaches `min_share` somewhere in the image. If no name of an
    image does, all of them stay.

    Args:
        maps: float32 [B, T, h, w], ≥ 0.
        min_share: Threshold, 0 to 1.

    Returns:
        float32 [B, T, h, w], ≥ 0.
    """
    share = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    kept = share.amax(dim=(2, 3)) >= min_share
    kept |= ~kept.any(dim=1, keepdim=True)
    return torch.where(kept[..., None, None], maps, 0)


def smooth_scores(maps: torch.Tensor, attention: torch.Tensor, finite: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Replace the scores at each position by their mean over the positions that it attends to (key smoothing).

    The authors weight positions by the similarity of the keys of CLIP's last layer. Stable Diffusion's self-attention,
    which is used here, follows objects better.

    Args:
        maps: float32 [B, T, h, w], on any grid.
        attention: float32 [B, P, P]; rows sum to 1, so that no score leaves the range of its map.
        finite: bool [B], images whose attention is finite.
        grid: Height and width of the working grid.

    Returns:
        float32 [B, T, grid[0], grid[1]]; zeros for images whose attention is not finite.
    """
    down, along = (
        bilinear_matrix(tokens, side, device=maps.device) for tokens, side in zip(maps.shape[2:], grid, strict=True)
    )
    resized = (down @ maps @ along.T).flatten(2)
    rows = torch.where(finite[:, None, None], attention, 0)
    return (resized @ rows.transpose(1, 2)).unflatten(2, grid)
