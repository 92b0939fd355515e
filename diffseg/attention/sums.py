"""Sums of attention over the layers of each resolution, to which the processors of a pass add.

Axes: B images in the batch, P token positions of one resolution, L tokens, C chosen tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel

from diffseg.attention.layers import AttentionLayer
from diffseg.attention.maps import CrossAttention, Grid, SelfAttention


def latent_multiple(unet: UNet2DConditionModel) -> int:
    """Return the divisor that both sides of the latents need, so that every resolution has whole tokens."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


class AttentionSums:
    """The sums of a pass over the layers of each resolution, which the processors add to.

    Attributes:
        layers: The layers that are recorded, in order.
        grids: Height and width in tokens by level.
    """

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        unet: UNet2DConditionModel,
        latents: torch.Tensor,
        *,
        tokens: int = 0,
    ) -> None:
        """Make sums of zeros, with `tokens` keys for cross-attention."""
        multiple = latent_multiple(unet)
        height, width = latents.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(f"latents of {height} x {width}: both sides must be multiples of {multiple}")
        self.layers = layers
        self.grids = {level: (height >> level, width >> level) for level in range(multiple.bit_length())}
        self._sums: dict[tuple[bool, Grid], torch.Tensor] = {}
        self._counts = Counter(self._key(layer) for layer in layers)
        for is_cross, (rows, columns) in self._counts:
            positions = rows * columns
            keys = tokens if is_cross else positions
            self._sums[is_cross, (rows, columns)] = torch.zeros(
                len(latents), positions, keys, dtype=torch.float32, device=latents.device
            )

    def of(self, layer: AttentionLayer) -> torch.Tensor:
        """Return the sum of a layer's kind and resolution, float32 [B, P, P] or [B, P, L]."""
        return self._sums[self._key(layer)]

    def self_attention(self) -> SelfAttention:
        """Return the means over layers, computed in place."""
        counts = self._counts_of(is_cross=False)
        return SelfAttention(
            maps={grid: self._sums[False, grid].div_(count) for grid, count in counts.items()}, layers=counts
        )

    def cross_attention(self, columns: torch.Tensor) -> CrossAttention:
        """Return the means over layers, for the tokens at int64 [B, C]."""
        counts, maps = self._counts_of(is_cross=True), {}
        for grid, count in counts.items():
            total_BPL = self._sums[True, grid]
            chosen_BPC = total_BPL.gather(2, columns[:, None].expand(-1, total_BPL.shape[1], -1))
            maps[grid] = chosen_BPC.transpose(1, 2) / count
        return CrossAttention(maps=maps, layers=counts)

    def all_cross_attention(self) -> CrossAttention:
        """Return the means over layers for all tokens, computed in place."""
        counts = self._counts_of(is_cross=True)
        maps = {grid: self._sums[True, grid].div_(count).transpose(1, 2) for grid, count in counts.items()}
        return CrossAttention(maps=maps, layers=counts)

    def _key(self, layer: AttentionLayer) -> tuple[bool, Grid]:
        return layer.module.is_cross_attention, self.grids[layer.level]

    def _counts_of(self, *, is_cross: bool) -> dict[Grid, int]:
        return {grid: count for (kind, grid), count in self._counts.items() if kind == is_cross}
