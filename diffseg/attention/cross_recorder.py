"""Record how much each position of the image looks at chosen tokens of the prompt, in the pass that records the rest.

Axes: B images in the batch, H heads, P token positions of one resolution, L tokens of the prompt, C chosen ones.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from diffseg.attention.maps import CrossAttention, Grid
from diffseg.attention.recording import Recording
from diffseg.devices import to_device


class CrossRecorder:
    """A diffusers attention processor for cross-attention layers; the layer's output stays what it was."""

    def __init__(self, columns: torch.Tensor, recording: Recording) -> None:
        """columns: int64 [B, C], the tokens to keep of each image's prompt."""
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
        def heads_apart(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()

        queries = heads_apart(attn.to_q(hidden_states))
        keys = heads_apart(attn.to_k(encoder_hidden_states))
        probabilities_BHPL = torch.softmax(queries @ keys.transpose(2, 3) * attn.scale, dim=-1)
        self._keep(probabilities_BHPL)
        self.recording.layer_done()
        outputs = probabilities_BHPL @ heads_apart(attn.to_v(encoder_hidden_states))
        merged = outputs.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](merged)) / attn.rescale_output_factor

    def _keep(self, probabilities_BHPL: torch.Tensor) -> None:
        grid = self.recording.grid_of_tokens[probabilities_BHPL.shape[2]]
        mean = probabilities_BHPL.mean(dim=1)
        chosen = mean.gather(2, self.columns[:, None].expand(-1, mean.shape[1], -1)).transpose(1, 2)
        self.sums[grid] = self.sums[grid] + chosen if grid in self.sums else chosen
        self.layers[grid] = self.layers.get(grid, 0) + 1

    def finished(self) -> CrossAttention:
        """The maps of all layers that have run."""
        return CrossAttention(
            maps={grid: self.sums[grid] / count for grid, count in self.layers.items()}, layers=dict(self.layers)
        )


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The cross-attention modules of every transformer block, in the order of the module tree."""
    return [
        block.attn2
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock) and block.attn2 is not None and block.attn2.is_cross_attention
    ]


def padded_columns(columns: list[list[int]], device: torch.device) -> torch.Tensor:
    """int64 [B, C] of lists of tokens; token 0 where a list is shorter, which `of_words` gives no weight."""
    longest = max(1, *(len(each) for each in columns))
    return to_device(torch.tensor([each + [0] * (longest - len(each)) for each in columns]), device)
