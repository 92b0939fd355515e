"""Record how much each image position attends to chosen prompt tokens, in the pass that records self-attention.

Axes: B images in the batch, H heads, P token positions of one resolution, L tokens of the prompt, C chosen tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from diffseg.attention.maps import CrossAttention, Grid
from diffseg.attention.recording import Recording, project_output, split_heads
from diffseg.devices import to_device


class CrossRecorder:
    """A diffusers attention processor that records cross-attention and leaves the layer's output unchanged."""

    def __init__(self, columns: torch.Tensor, recording: Recording) -> None:
        """Prepare one pass.

        Args:
            columns: int64 [B, C], positions in each image's prompt of the tokens to record.
            recording: State of the pass, which counts the layers of both kinds.
        """
        self.columns = columns
        self.recording = recording
        self.sums: dict[Grid, torch.Tensor] = {}
        self.layers: dict[Grid, int] = {}

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Run the layer as diffusers' own processor does, and record its probabilities."""
        queries = split_heads(attn.to_q(hidden_states), attn.heads)
        keys = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        probabilities_BHPL = torch.softmax(queries @ keys.transpose(2, 3) * attn.scale, dim=-1)
        self._record(probabilities_BHPL)
        self.recording.end_layer()
        outputs = probabilities_BHPL @ split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        return project_output(attn, outputs, hidden_states.dtype)

    def _record(self, probabilities_BHPL: torch.Tensor) -> None:
        grid = self.recording.grid_of_tokens[probabilities_BHPL.shape[2]]
        mean = probabilities_BHPL.mean(dim=1)
        chosen = mean.gather(2, self.columns[:, None].expand(-1, mean.shape[1], -1)).transpose(1, 2)
        self.sums[grid] = self.sums[grid] + chosen if grid in self.sums else chosen
        self.layers[grid] = self.layers.get(grid, 0) + 1

    def mean_maps(self) -> CrossAttention:
        """Return the mean over all layers that have run."""
        return CrossAttention(
            maps={grid: self.sums[grid] / count for grid, count in self.layers.items()}, layers=dict(self.layers)
        )


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """Return the cross-attention modules of every transformer block, in the order of the module tree."""
    return [
        block.attn2
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock) and block.attn2 is not None and block.attn2.is_cross_attention
    ]


def pad_columns(columns: list[list[int]], device: torch.device) -> torch.Tensor:
    """Return token positions as int64 [B, C], with shorter lists padded by position 0.

    The weights that `CrossAttention.combine_tokens` is called with must be 0 for the padding.
    """
    longest = max(1, *(len(positions) for positions in columns))
    padded = [positions + [0] * (longest - len(positions)) for positions in columns]
    return to_device(torch.tensor(padded), device)
