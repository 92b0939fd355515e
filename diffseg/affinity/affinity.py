"""Affinity affinity in a pass of the model: read from a file, found beside what is recorded, and given to the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from diffseg.affinity.features import FeatureAffinity
from diffseg.affinity.heads import HeadAffinity
from diffseg.affinity.state import AffinityError, AffinityState, hook_self_attention
from diffseg.attention.aggregate import upsample
from diffseg.attention.maps import Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Affinity:
    """The affinity of a batch. grid: (h, w) of its positions.

    dense: of heads: float32 [B, P, P], symmetric, in (0, 1). local: of features: by offset, see
    `neighbour_affinity`. The other one is None.
    """

    grid: Grid
    dense: torch.Tensor | None = None
    local: Mapping[Grid, torch.Tensor] | None = None

    def of_images(self, start: int, stop: int) -> Affinity:
        """The affinity of some images of the batch."""
        whole, near = self.dense, self.local
        return Affinity(
            grid=self.grid,
            dense=None if whole is None else whole[start:stop],
            local=None if near is None else {offset: maps[start:stop] for offset, maps in near.items()},
        )


def check_state(state: AffinityState | None, model_sha256: str, method: Sequence[str]) -> None:
    """Raises AffinityError where it was learned from another model, is of a kind that no stage uses, or is missing."""
    if state is None:
        if "affinity" in method:
            raise AffinityError(f"method {','.join(method)}: stage affinity needs a file of `diffseg fit heads`")
        return
    state.check_fits(model_sha256)
    stage = {"heads": "affinity", "features": "walk"}[state.kind]
    if stage not in method or (state.kind == "features" and "affinity" in method):
        raise AffinityError(
            f"method {','.join(method)}: what was learned is an affinity of {state.kind}, for stage {stage}"
        )


@contextmanager
def record_affinity(state: AffinityState | None, unet: UNet2DConditionModel) -> Iterator[Callable[[], Affinity | None]]:
    """Within, a pass is run; what is yielded then gives the affinity in it."""
    if state is None:
        yield lambda: None
        return
    found = HeadAffinity(state) if state.kind == "heads" else FeatureAffinity(state)

    def learned() -> Affinity:
        if isinstance(found, HeadAffinity):
            return Affinity(grid=found.grid, dense=found.affinity())
        return Affinity(grid=found.grid, local=found.affinity())

    with hook_self_attention(unet, found):
        yield learned


def as_attention(affinity: torch.Tensor, grid: Grid, finest: Grid) -> torch.Tensor:
    """Affinity float32 [B, P, P] on a grid as if it were self-attention on a finer one: rows sum to 1.

    Keys are upsampled bilinearly, and queries repeated, as resolutions are when they are aggregated.
    """
    (rows, columns), (height, width) = grid, finest
    keys = upsample(affinity, grid, finest)
    keys /= keys.sum(dim=-1, keepdim=True)
    queries = keys.view(-1, rows, 1, columns, 1, height * width)
    return queries.expand(-1, -1, height // rows, -1, width // columns, -1).reshape(-1, height * width, height * width)
