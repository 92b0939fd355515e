"""The state of one recording pass: sums of self-attention maps by resolution.

Axes: B images in the batch, H heads, P token positions of one resolution, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention

from diffseg.attention.maps import Grid, SelfAttention

WORKSPACE_ELEMENTS = 2**20
"""Probabilities held at a time on a CPU: 4 MiB of float32 fit its cache and give the products enough rows."""

DEVICE_WORKSPACE_ELEMENTS = 2**26
"""Probabilities held at a time on other devices, 256 MiB: there, launching a kernel costs more than memory."""


class PassComplete(Exception):
    """Raised when the last needed layer has been recorded, to skip the rest of the UNet."""


@dataclass(kw_only=True)
class Recording:
    """What one pass of the UNet has recorded so far.

    Attributes:
        grid_of_tokens: The grid that a number of tokens stands for.
        layers_left: Number of self- and cross-attention layers that have not run yet.
        stop_early: Whether the pass ends after the last of them.
        sums: {(h, w): float32 [B, h·w, h·w]}, sums over layers of the mean over heads.
        layers: {(h, w): number of layers in the sum}.
        workspace: Memory for the probabilities of a block, reused by all layers.
    """

    grid_of_tokens: Mapping[int, Grid]
    layers_left: int
    stop_early: bool
    sums: dict[Grid, torch.Tensor] = field(default_factory=dict)
    layers: dict[Grid, int] = field(default_factory=dict)
    workspace: torch.Tensor | None = None

    def begin_layer(self, queries_BHPD: torch.Tensor) -> torch.Tensor:
        """Count a self-attention layer and return the sum, float32 [B, P, P], to which its mean over heads is added."""
        batch, _, tokens, _ = queries_BHPD.shape
        grid = self.grid_of_tokens[tokens]
        if grid not in self.sums:
            self.sums[grid] = torch.zeros(batch, tokens, tokens, dtype=torch.float32, device=queries_BHPD.device)
        self.layers[grid] = self.layers.get(grid, 0) + 1
        return self.sums[grid]

    def workspace_for(self, queries_BHPD: torch.Tensor) -> torch.Tensor:
        """Return memory for the probabilities of a block, float32 [heads per block, queries per block, P].

        All layers share it: fresh arrays of this size would cost more in page faults than the arithmetic on them.
        """
        _, heads, tokens, _ = queries_BHPD.shape
        device = queries_BHPD.device
        elements = WORKSPACE_ELEMENTS if device.type == "cpu" else DEVICE_WORKSPACE_ELEMENTS
        rows_per_block = min(tokens, max(1, elements // tokens))
        heads_per_block = min(heads, max(1, elements // (rows_per_block * tokens)))
        needed = heads_per_block * rows_per_block * tokens
        if self.workspace is None or len(self.workspace) < needed:
            self.workspace = torch.empty(needed, dtype=torch.float32, device=device)
        return self.workspace[:needed].view(heads_per_block, rows_per_block, tokens)

    def end_layer(self) -> None:
        """Count a layer of either kind as recorded.

        Raises:
            PassComplete: It was the last layer, and `stop_early` is set.
        """
        self.layers_left -= 1
        if self.layers_left == 0 and self.stop_early:
            raise PassComplete

    def mean_maps(self) -> SelfAttention:
        """Return the means over layers, computed in place."""
        maps = {grid: self.sums[grid].div_(count) for grid, count in self.layers.items()}
        return SelfAttention(maps=maps, layers=dict(self.layers))


def split_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """Return queries, keys or values [B, P, H·D] as float32 [B, H, P, D]."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2).float()


def project_output(attn: Attention, outputs_BHPD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Apply the layer's output projection to float32 [B, H, P, D]; returns [B, P, H·D] of the given dtype."""
    merged = outputs_BHPD.transpose(1, 2).flatten(2).to(dtype)
    return attn.to_out[1](attn.to_out[0](merged)) / attn.rescale_output_factor
