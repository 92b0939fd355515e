"""Attention for a CLIP's last layer, made of what Stable Diffusion says about positions (ProxyCLIP).

Source: Lan et al., ECCV 2024, equations 4 to 6: the attention is softmax_j((S_ij − shift · mean S) · scale) over the
positions j where the term is not negative, with shift 1.2 and scale 3. S is the cosine of the features of a model that
locates objects better than CLIP.

Axes: B images, P = h·w positions of the working grid, D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid

MIN_WEIGHT = 1e-12
"""Attention below this counts as this, so that its logarithm is finite."""


def guide_of_features(features: Mapping[Grid, torch.Tensor], grid: Grid, *, shift: float, scale: float) -> torch.Tensor:
    """Return attention by the similarity of features.

    The similarity is the mean over resolutions of the cosines, so that coarse layers, which tell objects apart, and
    fine layers, which locate their borders, both count.

    Args:
        features: float32 [B, D, h·w] for each resolution.
        grid: Height and width of the working grid, to which all are resized.
        shift: Positions whose similarity is below this many times the mean are left out.
        scale: Factor of similarities.

    Returns:
        float32 [B, P, P]; rows sum to 1.
    """
    normalised = []
    for tokens, maps in features.items():
        down, along = (bilinear_matrix(a, b, device=maps.device) for a, b in zip(tokens, grid, strict=True))
        normalised.append(F.normalize((down @ maps.nan_to_num().unflatten(2, tokens) @ along.T).flatten(2), dim=1))
    joined = torch.cat(normalised, dim=1) / len(normalised) ** 0.5
    similarity = joined.transpose(1, 2) @ joined
    threshold = shift * similarity.mean(dim=(1, 2), keepdim=True)
    return _masked_softmax(scale * similarity, similarity >= threshold)


def guide_of_attention(attention: torch.Tensor, *, shift: float, scale: float) -> torch.Tensor:
    """Return aggregated self-attention in the form of `guide_of_features`.

    S is the logarithm of the attention, so that the result is proportional to its power `scale`. The threshold applies
    to the attention itself, since the mean of logarithms depends mostly on positions that nothing attends to. The mean
    of the attention is 1/P.

    Args:
        attention: float32 [B, P, P]; rows sum to 1.
        shift: Attention below this many times the mean is left out.
        scale: Power of the attention.

    Returns:
        float32 [B, P, P]; rows sum to 1.
    """
    kept = attention >= shift / attention.shape[-1]
    return _masked_softmax(scale * attention.clamp_min(MIN_WEIGHT).log(), kept)


def _masked_softmax(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the positions that are kept. Each position keeps itself, so that no row is empty."""
    kept = kept | torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(~kept, -torch.inf).softmax(dim=-1)
