"""DiffSeg on attention maps that the caller provides (Tian et al., CVPR 2024).

Axes: H and W pixels, h and w tokens of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from diffseg.attention.maps import Grid, SelfAttention
from diffseg.method.decide import decide
from diffseg.method.proposals import aggregate_attention
from diffseg.method.signals import Signals
from diffseg.method.stages import run_stages, stages_of
from diffseg.pending import NonFiniteError
from diffseg.settings import Preset, StageName, settings_of, thresholds

PIXELS_PER_TOKEN = 8
"""Pixels per side of a token in the default size of the result."""
ATTENTION_STAGES: tuple[StageName, ...] = ("diffseg", "ncut", "walk")
"""Stages that read nothing but self-attention."""


def segment_attention(
    maps: Mapping[int | Grid, np.ndarray | torch.Tensor],
    *,
    preset: Preset = "default",
    method: str | Sequence[StageName] = ("diffseg",),
    tau: float | Sequence[float] | None = None,
    kmeans: bool | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Segment self-attention that the caller provides.

    Args:
        maps: {side or (h, w) in tokens: float32 [heads, h·w, h·w]}, whose rows sum to 1. Each entry counts as a layer.
        preset: Settings to start from.
        method: Stages in order, as a sequence or separated by commas: diffseg or ncut, which find segments, then walk,
            which spreads their scores along the attention. The other stages read more than self-attention.
        tau: One threshold in nats for all rounds, or one for each round. The default is the preset's, else 1.1.
        kmeans: Whether to refine the proposals by k-means. The default is the preset's.
        size: (H, W) of the result in pixels. The default is 8 times the finest grid, 512 x 512 for a side of 64.

    Returns:
        The label map, uint16 [H, W] with labels 0 … K−1.

    Raises:
        ValueError: A shape does not fit its side, or a setting is invalid.
        NonFiniteError: The attention is not finite. This is a ValueError.
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
    overrides = {name: value for name, value in {"kmeans": kmeans, "tau": tau}.items() if value is not None}
    names = tuple(method.split(",") if isinstance(method, str) else method)
    settings = settings_of(preset, method=names, **overrides)
    if others := [name for name in names if name not in ATTENTION_STAGES]:
        raise ValueError(f"stage {others[0]} reads more than self-attention; expected {', '.join(ATTENTION_STAGES)}")
    attention = SelfAttention(maps=means, layers=dict.fromkeys(means, 1))
    aggregated, grid, finite = aggregate_attention(attention, settings, overwrite=True)
    if not finite.all():
        raise NonFiniteError("the self-attention is not finite")
    signals = Signals(pixels=aggregated.new_empty(1, 3, 0, 0), grid=grid, self_attention=aggregated, finite=finite)
    scores = run_stages(stages_of(settings.method or (), settings, settings.merging.tau or thresholds(1.1)), signals)
    size = size or (grid[0] * PIXELS_PER_TOKEN, grid[1] * PIXELS_PER_TOKEN)
    return decide(scores.maps[0], size).labels
