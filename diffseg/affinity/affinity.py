"""Use of a learned affinity in a pass of the model: check its state, record it, and hand it to the stages.

Axes: B images in the batch, P = h·w token positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from diffseg.affinity.features import FeatureAffinity
from diffseg.affinity.heads import HeadAffinity
from diffseg.affinity.state import AffinityError, AffinityState, PassConditions, hook_self_attention
from diffseg.attention.aggregate import upsample
from diffseg.attention.maps import Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Affinity:
    """The affinity of a batch; either `dense` or `local` is given.

    Attributes:
        grid: Height and width of its positions, in tokens.
        dense: Affinity between all positions, learned from heads: float32 [B, P, P], symmetric, in (0, 1).
        local: Affinity of neighbours by offset, learned from features; see `neighbour_affinity`.
    """

    grid: Grid
    dense: torch.Tensor | None = None
    local: Mapping[Grid, torch.Tensor] | None = None

    def of_images(self, start: int, stop: int) -> Affinity:
        """Return the affinity of some images of the batch."""
        dense, local = self.dense, self.local
        return Affinity(
            grid=self.grid,
            dense=None if dense is None else dense[start:stop],
            local=None if local is None else {offset: maps[start:stop] for offset, maps in local.items()},
        )

    def average_with_mirrored(self, mirrored: Affinity) -> None:
        """Average this affinity in place with that of the mirrored images, after mirroring that back.

        A pair of neighbours in the same row keeps its offset in the mirrored image, since offsets point to the right
        there; for all other pairs the columns of the offset change their sign.
        """
        if self.dense is not None and mirrored.dense is not None:
            rows, columns = self.grid
            restored = mirrored.dense.view(-1, rows, columns, rows, columns).flip(2, 4)
            self.dense.add_(restored.view_as(self.dense)).div_(2)
        if self.local is not None and mirrored.local is not None:
            for (down, right), maps in self.local.items():
                maps.add_(mirrored.local[down, -right if down else right].flip(-1)).div_(2)


def check_state(state: AffinityState | None, now: PassConditions | None, method: Sequence[str]) -> None:
    """Check that a run can use a state.

    Args:
        state: The learned affinity, or None.
        now: What the passes of the run depend on; it may be None where `state` is.
        method: Names of the stages.

    Raises:
        AffinityError: The state was learned from other passes, no stage uses its kind, or a stage needs a state and
            there is none.
    """
    if state is None:
        if "affinity" in method:
            raise AffinityError(f"method {','.join(method)}: stage affinity needs a file of `diffseg fit heads`")
        return
    if now is not None:
        state.check_fits(now)
    stage = {"heads": "affinity", "features": "walk"}[state.kind]
    if stage not in method or (state.kind == "features" and "affinity" in method):
        raise AffinityError(
            f"method {','.join(method)}: the file holds an affinity of {state.kind}, for stage {stage} only"
        )


@contextmanager
def record_affinity(state: AffinityState | None, unet: UNet2DConditionModel) -> Iterator[Callable[[], Affinity | None]]:
    """Record what a learned affinity needs from the passes of the UNet inside the `with` block.

    Args:
        state: The learned affinity; None records nothing.
        unet: The model.

    Yields:
        A function that returns the affinity of the pass, or None without a state.
    """
    if state is None:
        yield lambda: None
        return
    recorder = HeadAffinity(state) if state.kind == "heads" else FeatureAffinity(state)

    def affinity() -> Affinity:
        if isinstance(recorder, HeadAffinity):
            return Affinity(grid=recorder.grid, dense=recorder.affinity())
        return Affinity(grid=recorder.grid, local=recorder.affinity())

    with hook_self_attention(unet, recorder):
        yield affinity


def as_attention(affinity: torch.Tensor, grid: Grid, finest: Grid) -> torch.Tensor:
    """Convert dense affinity to self-attention on a finer grid, whose rows sum to 1.

    As when resolutions are aggregated, keys are upsampled bilinearly and queries are repeated.

    Args:
        affinity: float32 [B, h·w, h·w].
        grid: Its grid, (h, w).
        finest: The grid of the result, a multiple of `grid`.

    Returns:
        float32 [B, H·W, H·W], where (H, W) is `finest`.
    """
    (rows, columns), (height, width) = grid, finest
    keys = upsample(affinity, grid, finest)
    keys /= keys.sum(dim=-1, keepdim=True)
    queries = keys.view(-1, rows, 1, columns, 1, height * width)
    return queries.expand(-1, -1, height // rows, -1, width // columns, -1).reshape(-1, height * width, height * width)
