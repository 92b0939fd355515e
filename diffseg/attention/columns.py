"""Columns of a prompt: the positions of the tokens whose cross-attention is kept.

Axes: B images in the batch, C chosen tokens.
"""

from __future__ import annotations

import torch

from diffseg.devices import to_device


def pad_columns(columns: list[list[int]], device: torch.device) -> torch.Tensor:
    """Return token positions as int64 [B, C], with shorter lists padded by position 0.

    The weights that `CrossAttention.combine_tokens` is called with must be 0 for the padding.
    """
    longest = max(1, *(len(positions) for positions in columns))
    padded = [positions + [0] * (longest - len(positions)) for positions in columns]
    return to_device(torch.tensor(padded), device)
