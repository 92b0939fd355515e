"""Local affinity from the inputs of self-attention layers, through one learned layer (AffinityNet, section 3.2).

f = ELU(Σ_r W_r F_r + b), where F_r is the input of the last layer of resolution r, on the finest grid. The affinity of
positions i and j is exp(−mean |f_i − f_j|). AffinityNet has one more layer, but linear layers whose results are summed
are equivalent to a single linear layer.

Axes: B images in the batch, D_r channels of a resolution, E channels of the layer's result, h and w of the finest grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.models.attention_processor import Attention

from diffseg.affinity.pairs import labels_on_grid, neighbour_loss, pair_affinities
from diffseg.affinity.state import (
    AffinityError,
    AffinityState,
    Observation,
    grid_name,
    hook_self_attention,
    parse_grid,
)
from diffseg.attention.aggregate import upsample
from diffseg.attention.maps import Grid
from diffseg.attention.neighbours import half_disc, neighbour_slices
from diffseg.model.backbone import Backbone

WIDTH = 448
"""Channels of the layer's result, as in AffinityNet, or the number of its inputs if that is smaller."""

RADIUS = 5
"""Positions of a pair are less than this many tokens apart: 34 offsets and their opposites."""

STEPS, RATE = 1000, 1e-3
"""Optimisation steps, with one image each, and the first learning rate."""

Features = Mapping[Grid, torch.Tensor]
"""float [B, D, h·w] for each resolution."""


class FeatureReader:
    """A layer hook (see `hook_self_attention`) that keeps the input of the last layer of each resolution.

    If several passes follow each other, each with other names, only the first counts, as it does for self-attention.
    """

    def __init__(self) -> None:
        self.inputs: dict[int, torch.Tensor] = {}
        self._seen: set[Attention] = set()

    def __call__(self, number: int, layer: Attention, inputs: torch.Tensor) -> None:
        if layer not in self._seen:
            self._seen.add(layer)
            self.inputs[inputs.shape[1]] = inputs

    def features(self, grids: Sequence[Grid]) -> Features:
        """Return the inputs at some resolutions as float32."""
        return {grid: self.inputs[grid[0] * grid[1]].transpose(1, 2).float() for grid in grids}


def embed(features: Features, weights: Mapping[Grid, torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
    """Apply the learned layer on the finest grid, to which coarser resolutions are upsampled.

    Args:
        features: float32 [B, D, h·w] for each resolution.
        weights: float32 [E, D] for each resolution.
        bias: float32 [E].

    Returns:
        float32 [B, E, h, w].
    """
    finest = max(features, key=lambda grid: grid[0] * grid[1])
    total = bias[:, None]
    for grid, maps in features.items():
        projected = weights[grid] @ maps
        total = total + (projected if grid == finest else upsample(projected, grid, finest))
    return torch.nn.functional.elu(total).unflatten(2, finest)


def neighbour_affinity(embedded: torch.Tensor) -> dict[Grid, torch.Tensor]:
    """Return the affinity between each position of [B, E, h, w] and its neighbours.

    Returns:
        {offset of `half_disc`: float32 [B, h − rows, w − |columns|]}, in (0, 1].
    """
    grid = (embedded.shape[2], embedded.shape[3])
    affinity = {}
    for offset in half_disc(RADIUS, grid):
        first, second = neighbour_slices(grid, offset)
        affinity[offset] = (embedded[first] - embedded[second]).abs().mean(dim=1).neg().exp()
    return affinity


def fit_features(images: Sequence[tuple[Features, torch.Tensor]], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Fit the layer to some images, one image per step; on a CPU the same images always give the same weights.

    Args:
        images: For each image its features, with B = 1, and its labels, int [1, h, w] on the finest grid.
        device: Device of the optimisation.

    Returns:
        float32 [E, D] under the name of each resolution, HxW in tokens, and [E] under `bias`.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = {grid: maps.shape[1] for grid, maps in images[0][0].items()}
    total = sum(sizes.values())
    width = min(WIDTH, total)
    weights = {
        grid: (torch.randn(width, size, generator=generator) / total**0.5).to(device).requires_grad_()
        for grid, size in sizes.items()
    }
    bias = torch.zeros(width, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([*weights.values(), bias], lr=RATE, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)
    for step in range(STEPS):
        if step % len(images) == 0:
            order = torch.randperm(len(images), generator=generator)
        features, labels = images[int(order[step % len(images)])]
        on_device = {grid: maps.to(device).float() for grid, maps in features.items()}
        loss = neighbour_loss(neighbour_affinity(embed(on_device, weights, bias)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tensors = {grid_name(grid): weight for grid, weight in weights.items()} | {"bias": bias}
    return {name: value.detach().cpu() for name, value in tensors.items()}


def collect(
    backbone: Backbone, pixels: torch.Tensor, labels: np.ndarray, *, timestep: int, seed: int
) -> Observation | None:
    """Collect the inputs of the self-attention layers for an image.

    Args:
        backbone: The frozen model.
        pixels: float32 [1, 3, S, S] in [−1, 1].
        labels: int [H, W] of the same image, see `labels_on_grid`.
        timestep: Diffusion timestep of the pass.
        seed: Not used; affinity from heads draws pairs with it.

    Returns:
        float16 [D, h·w] under the name of each resolution, HxW in tokens, and int32 [h, w] under `labels`. None if no
        position has a known label.
    """
    reader = FeatureReader()
    with hook_self_attention(backbone.checkpoint.unet, reader):
        grids = list(backbone.self_attention(pixels, timestep).maps)
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    known = labels_on_grid(labels, finest)
    if (known < 0).all():
        return None
    features = {grid_name(grid): maps[0] for grid, maps in reader.features(grids).items()}
    return {name: maps.half().cpu() for name, maps in features.items()} | {"labels": torch.from_numpy(known)}


def fit(observations: Sequence[Observation], device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the tensors and the layout of a state."""
    images = [(_features(observation), observation["labels"][None]) for observation in observations]
    tensors = fit_features(images, device)
    return tensors, {name: tensors[name].shape[1] for name in tensors if name != "bias"}


def predict(tensors: Mapping[str, torch.Tensor], observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Return the affinity of all known pairs of an image, float [N], and whether they are of the same segment."""
    features = {grid: maps.float() for grid, maps in _features(observation).items()}
    weights = {parse_grid(name): value for name, value in tensors.items() if name != "bias"}
    affinity = neighbour_affinity(embed(features, weights, tensors["bias"]))
    values, same_segment = pair_affinities(affinity, observation["labels"][None])
    return values.numpy(), same_segment.numpy()


def _features(observation: Observation) -> Features:
    """Return the features by resolution, the finest first, because a file gives its tensors back in any order."""
    maps = {parse_grid(name): tensor[None] for name, tensor in observation.items() if name != "labels"}
    return dict(sorted(maps.items(), reverse=True))


class FeatureAffinity:
    """A layer hook (see `hook_self_attention`) that gives the local affinity of a batch after its pass.

    Raises:
        AffinityError: The state is of another kind.
    """

    def __init__(self, state: AffinityState) -> None:
        if state.kind != "features":
            raise AffinityError(f"this is an affinity of {state.kind}; expected an affinity of features")
        self.state = state
        self.reader = FeatureReader()

    def __call__(self, number: int, layer: Attention, inputs: torch.Tensor) -> None:
        self.reader(number, layer, inputs)

    @property
    def grid(self) -> Grid:
        """Height and width of the finest resolution, in tokens."""
        return max(map(parse_grid, self.state.layout), key=lambda grid: grid[0] * grid[1])

    def affinity(self) -> dict[Grid, torch.Tensor]:
        """Return the affinity of neighbours, see `neighbour_affinity`.

        Raises:
            AffinityError: The pass had layers of other shapes than the state.
        """
        layout = {parse_grid(name): size for name, size in self.state.layout.items()}
        channels = {tokens: inputs.shape[2] for tokens, inputs in self.reader.inputs.items()}
        if channels != {rows * columns: size for (rows, columns), size in layout.items()}:
            raise AffinityError(
                f"the affinity is of {dict(self.state.layout)} channels by resolution; this pass had {channels} by "
                "number of tokens: run at the resolution that it was learned at, or learn one for this resolution"
            )
        features = self.reader.features(list(layout))
        device = next(iter(features.values())).device
        weights = {grid: self.state.tensors[grid_name(grid)].to(device) for grid in layout}
        return neighbour_affinity(embed(features, weights, self.state.tensors["bias"].to(device)))
