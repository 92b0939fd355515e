"""The state of one recording pass: sums of attention maps by resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from diffseg.attention.maps import Grid, SelfAttention

WORKSPACE_ELEMENTS = 2**20
"""Probabilities held at a time on a CPU: 4 MiB of float32 stay in its cache, and are enough rows for the products."""


DEVICE_WORKSPACE_ELEMENTS = 2**26
"""The same on other devices, 256 MiB, where starting a kernel costs more than memory."""


class PassComplete(Exception):
    """The last layer that is needed has been recorded; the rest of the UNet has no use."""


@dataclass(kw_only=True)
class Recording:
    """What one pass has recorded so far. layers_left: layers of both kinds that have not been seen yet."""

    grid_of_tokens: Mapping[int, Grid]
    layers_left: int
    stop_early: bool
    sums: dict[Grid, torch.Tensor] = field(default_factory=dict)
    layers: dict[Grid, int] = field(default_factory=dict)
    workspace: torch.Tensor | None = None

    def accumulator(self, queries_BHPD: torch.Tensor) -> torch.Tensor:
        batch, _, tokens, _ = queries_BHPD.shape
        grid = self.grid_of_tokens[tokens]
        if grid not in self.sums:
            self.sums[grid] = torch.zeros(batch, tokens, tokens, dtype=torch.float32, device=queries_BHPD.device)
        self.layers[grid] = self.layers.get(grid, 0) + 1
        return self.sums[grid]

    def workspace_for(self, queries_BHPD: torch.Tensor) -> torch.Tensor:
        """float32 [heads at a time, queries at a time, P] for the probabilities of a block, the same for all layers.

        Fresh arrays of this size would cost more in page faults than the arithmetic on them.
        """
        _, heads, tokens, _ = queries_BHPD.shape
        device = queries_BHPD.device
        elements = WORKSPACE_ELEMENTS if device.type == "cpu" else DEVICE_WORKSPACE_ELEMENTS
        rows = min(tokens, max(1, elements // tokens))
        some = min(heads, max(1, elements // (rows * tokens)))
        needed = some * rows * tokens
        if self.workspace is None or len(self.workspace) < needed:
            self.workspace = torch.empty(needed, dtype=torch.float32, device=device)
        return self.workspace[:needed].view(some, rows, tokens)

    def layer_done(self) -> None:
        """To be called when the maps of a layer are taken; ends the pass where nothing else is wanted of it."""
        self.layers_left -= 1
        if self.layers_left == 0 and self.stop_early:
            raise PassComplete

    def finished(self) -> SelfAttention:
        maps = {grid: self.sums[grid].div_(count) for grid, count in self.layers.items()}
        return SelfAttention(maps=maps, layers=dict(self.layers))
