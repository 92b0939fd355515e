"""Weights of heads and layers for the maps of names (GoCA, CVPR 2026), instead of plain means.

A head counts at a position by how far its contribution to the layer's output agrees with the whole output. A layer
counts for an image by how far its self-attention agrees with the similarity of the positions, as the queries of one
cross-attention layer see it.

Axes: B images in the batch, H heads, P positions of a layer, G positions of the grid on which layers are compared, K
tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from diffseg.attention.layers import AttentionLayer
from diffseg.attention.maps import CrossAttention, Grid
from diffseg.attention.name_context import NameContext, exclude_tokens
from diffseg.attention.processor import PassComplete, RecordingProcessor, split_heads

LONGEST_SIDE = 16
"""Longest side, in tokens, of the grid on which layers are compared: finer maps of all layers would not fit memory."""


class WeightedMaps:
    """The maps of the layers of one pass, which are put together when their weights are known."""

    def __init__(self, layers: Sequence[AttentionLayer], grids: Mapping[int, Grid]) -> None:
        """Prepare one pass.

        Args:
            layers: All layers that the pass runs.
            grids: Height and width in tokens by level.
        """
        cross = [layer for layer in layers if layer.module.is_cross_attention]
        self.reference = reference_layer(cross).name
        small = [grid for grid in grids.values() if max(grid) <= LONGEST_SIDE]
        self.grid = max(small) if small else min(grids.values())
        self.grid_of = {layer.name: grids[layer.level] for layer in layers}
        self.self_maps: dict[str, torch.Tensor] = {}
        self.cross_maps: dict[str, torch.Tensor] = {}
        self.affinity: torch.Tensor | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weight of each cross-attention layer, float32 [B], ≥ 0; they sum to 1 for each image."""
        assert self.affinity is not None
        agreement = {
            layer: (self.self_maps[layer.removesuffix("attn2") + "attn1"] * self.affinity).sum(dim=(1, 2))
            for layer in self.cross_maps
        }
        total = torch.stack([*agreement.values()]).sum(dim=0)
        return {layer: value / total for layer, value in agreement.items()}

    def cross_attention(self) -> CrossAttention:
        """Return the weighted maps of tokens; their mean over resolutions is the weighted sum over layers."""
        weights, sums = self.weights(), dict[Grid, torch.Tensor]()
        for layer, maps in self.cross_maps.items():
            weighted = (weights[layer][:, None, None] * maps).transpose(1, 2)
            grid = self.grid_of[layer]
            sums[grid] = sums[grid] + weighted if grid in sums else weighted
        return CrossAttention(
            maps={grid: maps * len(sums) for grid, maps in sums.items()}, layers=dict.fromkeys(sums, 1)
        )


def reference_layer(cross: Sequence[AttentionLayer]) -> AttentionLayer:
    """Return the layer whose queries say which positions are similar.

    It is the second one on the way up at the second finest resolution: in SD 1.5 the one that the authors chose.
    """
    level = min(layer.level for layer in cross) + 1
    upward = [layer for layer in cross if layer.name.startswith("up_blocks") and layer.level == level]
    return (upward or list(cross))[:2][-1]


class SelfMapProcessor:
    """Records a self-attention layer, and keeps its own map on the small grid."""

    def __init__(self, recording: RecordingProcessor, maps: WeightedMaps) -> None:
        """Prepare one pass.

        Args:
            recording: The processor that records the layer.
            maps: Where the layer's map is kept.
        """
        self.recording, self.maps = recording, maps

    def __call__(self, attn: Attention, *arguments: Any, **options: Any) -> torch.Tensor:
        """Run the layer."""
        layer = self.recording.name
        grid = self.maps.grid_of[layer]
        before = to_grid(self.recording.total, grid, self.maps.grid)
        output = self.recording(attn, *arguments, **options)
        self.maps.self_maps[layer] = to_grid(self.recording.total, grid, self.maps.grid) - before
        return output


class WeighingProcessor:
    """Keeps the map of a cross-attention layer with weighted heads, and leaves the layer to its own processor."""

    def __init__(
        self, processor: Any, layer: str, maps: WeightedMaps, context: NameContext | None, *, is_last: bool
    ) -> None:
        """Prepare one pass.

        Args:
            processor: The layer's own processor.
            layer: Name of the layer.
            maps: Where the layer's map is kept.
            context: The second context whose tokens are recorded; None records those of the prompt.
            is_last: Whether the pass ends once this layer has been recorded.
        """
        self.processor, self.layer, self.maps, self.context = processor, layer, maps, context
        self.is_last = is_last

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *arguments: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Record the layer and run it. Raises PassComplete if it was the last layer that is needed."""
        queries = split_heads(attn.to_q(hidden_states), attn.heads).float()
        keys, values = (split_heads(to(encoder_hidden_states), attn.heads).float() for to in (attn.to_k, attn.to_v))
        probabilities = torch.softmax(queries @ keys.transpose(2, 3) * attn.scale, dim=-1)
        weights = head_weights(probabilities @ values, attn.to_out[0].weight.float())
        if self.layer == self.maps.reference:
            similar = torch.softmax(queries @ queries.transpose(2, 3) * attn.scale, dim=-1).mean(dim=1)
            self.maps.affinity = to_grid(similar, self.maps.grid_of[self.layer], self.maps.grid)
        if self.context is not None:
            keys = split_heads(self.context.keys[self.layer], attn.heads).float().expand(len(queries), -1, -1, -1)
            if self.context.is_padding is not None:
                queries, keys = exclude_tokens(queries, keys, self.context.is_padding)
            probabilities = torch.softmax(queries @ keys.transpose(2, 3) * attn.scale, dim=-1)
        self.maps.cross_maps[self.layer] = torch.einsum("bhp,bhpk->bpk", weights, probabilities)
        if self.is_last:
            raise PassComplete
        return self.processor(attn, hidden_states, encoder_hidden_states, *arguments, **options)


def head_weights(outputs_BHPD: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return the weight of each head at each position, float32 [B, H, P], ≥ 0; they sum to 1 over the heads.

    The weight is the scalar product of what the head adds to the layer's output and the whole output.

    Args:
        outputs_BHPD: Outputs of the heads before the projection, float32.
        projection: Weight of the projection, float32 [channels, H·D].
    """
    merged = outputs_BHPD.transpose(1, 2).flatten(2)
    whole = merged @ projection.T
    agreement = (split_heads(whole @ projection, outputs_BHPD.shape[1]) * outputs_BHPD).sum(dim=-1).clamp_min(0)
    total = agreement.sum(dim=1, keepdim=True)
    return torch.where(total > 0, agreement / total.clamp_min(1e-20), 1 / agreement.shape[1])


def to_grid(maps: torch.Tensor, grid: Grid, target: Grid) -> torch.Tensor:
    """Bring row-stochastic maps [B, P, P] of a grid to another that divides it or is divided by it: [B, G, G].

    On a coarser grid, queries are averaged and keys added up; on a finer one, queries are repeated and keys spread
    evenly. Rows sum to as much as before.
    """
    if grid[0] >= target[0]:
        rows, columns = grid[0] // target[0], grid[1] // target[1]
        parts = maps.view(-1, target[0], rows, target[1], columns, target[0], rows, target[1], columns)
        return parts.sum(dim=(6, 8)).mean(dim=(2, 4)).flatten(1, 2).flatten(2)
    rows, columns = target[0] // grid[0], target[1] // grid[1]
    fine = maps.view(-1, *grid, *grid)
    for axis, factor in ((1, rows), (2, columns), (3, rows), (4, columns)):
        fine = fine.repeat_interleave(factor, dim=axis)
    return fine.flatten(1, 2).flatten(2) / (rows * columns)
