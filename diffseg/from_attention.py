"""DiffSeg on attention maps that the caller provides (Tian et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from diffseg.attention.maps import Grid, SelfAttention
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.pending import NonFiniteError
from diffseg.settings import Preset, settings_of, thresholds

PIXELS_PER_TOKEN = 8


def segment_attention(
    maps: Mapping[int | Grid, np.ndarray | torch.Tensor],
    *,
    preset: Preset = "default",
    tau: float | Sequence[float] | None = None,
    kmeans: bool | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Label map, uint16 [H, W] with labels 0 … K−1, of self-attention that you bring yourself.

    maps: {side or (h, w) in tokens: float32 [heads, h·w, h·w], rows sum to 1}; each entry counts as one layer.
    tau: one threshold in nats, or one for each round; default: the preset's, else 1.1. size: (H, W) of the result;
    default: 8 times the finest grid, 512 x 512 for 64. Raises ValueError where a shape does not fit its side.
    """
    if not maps:
        raise ValueError("no attention maps were given")
    means: dict[Grid, torch.Tensor] = {}
    for key, value in maps.items():
        grid = (int(key[0]), int(key[1])) if isinstance(key, tuple) else (int(key), int(key))
        heads = torch.as_tensor(value, dtype=torch.float32)
        tokens = grid[0] * grid[1]
        if heads.ndim != 3 or tuple(heads.shape[1:]) != (tokens, tokens):
            raise ValueError(f"maps[{key}]: shape {tuple(heads.shape)}; expected [heads, {tokens}, {tokens}]")
        means[grid] = heads.mean(dim=0, keepdim=True)
    given = {"kmeans": kmeans, "tau": tau}
    settings = settings_of(preset, **{name: value for name, value in given.items() if value is not None})
    attention = SelfAttention(maps=means, layers=dict.fromkeys(means, 1))
    scores, finite = scores_of(attention, settings, settings.merging.tau or thresholds(1.1), overwrite=True)
    if not finite.all():
        raise NonFiniteError("the self-attention is not finite")
    grid = attention.finest
    size = size or (grid[0] * PIXELS_PER_TOKEN, grid[1] * PIXELS_PER_TOKEN)
    return decide(scores[0], size).labels
