"""The size of a network, compared with its file of weights before memory is reserved for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def check_size(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], *, is_part: bool = False) -> None:
    """Compare the size of the network of a config.json, which may come from anywhere, with its weights.

    Args:
        build: Returns the network, which is created without memory for its weights.
        tensors: The weights from the file.
        is_part: Whether `build` returns only a part of the network, so that more weights are expected.

    Raises:
        ValueError: The sizes differ, or the part is larger than the weights.
    """
    with torch.device("meta"):
        expected = sum(tensor.numel() for tensor in build().state_dict().values())
    size = sum(tensor.numel() for tensor in tensors.values())
    if expected > size or (expected < size and not is_part):
        raise ValueError(f"config.json is of a network with {expected:,} numbers, and the weights are {size:,}")
