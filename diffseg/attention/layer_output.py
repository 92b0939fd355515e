"""Record the output of one self-attention layer in a pass, as features of positions.

The layer is the last one of the down blocks, as DiffCut chooses it (Couairon et al., 2024): it has 16 x 16 positions at
512 pixels in SD 1.x and SD 2.x, and 32 x 32 at 1024 pixels in SDXL.

Axes: B images in the batch, D channels, h and w of the layer's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.attention.layers import AttentionLayer, attention_layers
from diffseg.attention.maps import Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerOutput:
    """The output of a self-attention layer for a batch.

    Attributes:
        maps: float [B, D, h·w], in the dtype of the model.
        grid: Height and width of the positions, in tokens.
    """

    maps: torch.Tensor
    grid: Grid

    def of_images(self, start: int, stop: int) -> LayerOutput:
        """Return the output for the images from `start` up to `stop` of the batch, as a view."""
        return LayerOutput(maps=self.maps[start:stop], grid=self.grid)


def feature_layer(unet: UNet2DConditionModel) -> AttentionLayer:
    """Return the last self-attention layer of the down blocks.

    Raises:
        ValueError: The down blocks have no self-attention.
    """
    layers = [layer for layer in attention_layers(unet) if not layer.module.is_cross_attention]
    if not (down := [layer for layer in layers if layer.name.startswith("down_blocks.")]):
        raise ValueError("the down blocks of this UNet have no self-attention, from whose output features are read")
    return down[-1]


@contextmanager
def record_layer_output(unet: UNet2DConditionModel, pixels: torch.Tensor) -> Iterator[Callable[[], LayerOutput]]:
    """Record the output of the feature layer in the first pass inside the `with` block.

    Args:
        unet: The UNet, whose blocks are not compiled: compiled graphs call no hooks.
        pixels: The batch, whose height and width the layer's grid follows.

    Yields:
        A function that returns the output after the pass.
    """
    layer, outputs = feature_layer(unet), list[torch.Tensor]()

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        if not outputs:
            outputs.append(output)

    def read() -> LayerOutput:
        (output,) = outputs
        height, width = pixels.shape[-2:]
        rows = round((output.shape[1] * height / width) ** 0.5)
        return LayerOutput(maps=output.mT, grid=(rows, output.shape[1] // rows))

    handle = layer.module.register_forward_hook(keep)
    try:
        yield read
    finally:
        handle.remove()
