"""Affinity of neighbours from what self-attention reads, through one learned layer (AffinityNet, section 3.2).

f = ELU(Σ_r W_r F_r + b), F_r what the last layer of resolution r reads, on the finest grid; the affinity of i and j is
exp(−mean |f_i − f_j|). AffinityNet has a layer more; a linear one and its sum with others are one linear layer.

Axes: B images in the batch, D_r channels of a resolution, E of the layer's result, h and w of the finest grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from diffusers.models.attention_processor import Attention

from diffseg.affinity.state import (
    AffinityError,
    AffinityState,
    Observation,
    hook_self_attention,
    labels_on_grid,
    parsed_grid,
)
from diffseg.attention.aggregate import upsample
from diffseg.attention.maps import Grid
from diffseg.attention.neighbours import half_disc, windows
from diffseg.model.backbone import Backbone

WIDTH = 448
"""Channels of the layer's result, as in AffinityNet, or as many as it reads where those are fewer."""

RADIUS = 5
"""In tokens: pairs are nearer than this; 34 offsets, and their opposites."""

FLOOR = 1e-5
"""Added to what a logarithm is taken of."""

STEPS, RATE = 1000, 1e-3

Features = Mapping[Grid, torch.Tensor]
"""float [B, D, h·w] by resolution."""


class FeatureReader:
    """Keeps what the last self-attention layer of each resolution reads in a pass: visits layers (see `hook_self_attention`)."""

    def __init__(self) -> None:
        self.read: dict[int, torch.Tensor] = {}

    def __call__(self, number: int, layer: Attention, read: torch.Tensor) -> None:
        self.read[read.shape[1]] = read

    def features(self, grids: Sequence[Grid]) -> Features:
        """float32, by resolution."""
        return {grid: self.read[grid[0] * grid[1]].transpose(1, 2).float() for grid in grids}


def embed(features: Features, weights: Mapping[Grid, torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
    """float32 [B, E, h, w] on the finest grid, to which coarser ones are upsampled. weights: [E, D] by resolution."""
    finest = max(features, key=lambda grid: grid[0] * grid[1])
    total = bias[:, None]
    for grid, maps in features.items():
        projected = weights[grid] @ maps
        total = total + (projected if grid == finest else upsample(projected, grid, finest))
    return torch.nn.functional.elu(total).unflatten(2, finest)


def neighbour_affinity(embedded: torch.Tensor) -> dict[Grid, torch.Tensor]:
    """{offset of `half_disc`: float32 [B, h − rows, w − |columns|]}, in (0, 1], of [B, E, h, w]."""
    grid = (embedded.shape[2], embedded.shape[3])
    found = {}
    for offset in half_disc(RADIUS, grid):
        own, other = windows(grid, offset)
        found[offset] = (embedded[own] - embedded[other]).abs().mean(dim=1).neg().exp()
    return found


def neighbour_loss(affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """¼ mean −ln W over pairs of background, ¼ of one other label, ½ mean −ln(1 − W) over pairs of two labels.

    labels: int [B, h, w]; 0 is background, below 0 is unknown. A sort that no pair is of counts 0, and where one of
    the first two is not there the other counts ½: segments without names have no background.
    """
    sums: dict[str, list[torch.Tensor]] = {"background": [], "label": [], "apart": []}
    counts = dict.fromkeys(sums, 0)
    for name, weight, chosen in _sorts(affinity, labels):
        value = 1 - weight if name == "apart" else weight
        sums[name].append(torch.where(chosen, -(value + FLOOR).log(), 0).sum())
        counts[name] += int(chosen.sum())
    means = {name: torch.stack(sums[name]).sum() / count for name, count in counts.items() if count}
    alike = [means[name] for name in ("background", "label") if name in means]
    halves = [torch.stack(alike).mean()] if alike else []
    halves += [means["apart"]] if "apart" in means else []
    if not halves:
        return torch.stack([part for parts in sums.values() for part in parts]).sum()
    return torch.stack(halves).sum() / 2


def _sorts(
    affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for offset, weight in affinity.items():
        own, other = (labels[window] for window in windows((labels.shape[1], labels.shape[2]), offset))
        known, alike = (own >= 0) & (other >= 0), own == other
        yield "background", weight, known & alike & (own == 0)
        yield "label", weight, known & alike & (own > 0)
        yield "apart", weight, known & ~alike


def pair_affinities(affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float [N] affinity of all known pairs, and bool [N], whether they are alike."""
    found = [(weight[chosen], name != "apart") for name, weight, chosen in _sorts(affinity, labels)]
    values = torch.cat([some for some, _ in found])
    return values, torch.cat([torch.full(some.shape, alike, dtype=torch.bool) for some, alike in found])


def fit_features(images: Sequence[tuple[Features, torch.Tensor]], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Weights float32 [E, D] by resolution as `HxW`, and a `bias` [E]; always the same for the same images on a CPU.

    images: features of one image each, with B = 1, and int [1, h, w] labels on the finest grid. One image a step.
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
    search = torch.optim.AdamW([*weights.values(), bias], lr=RATE, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(search, total_iters=STEPS, power=0.9)
    for step in range(STEPS):
        if step % len(images) == 0:
            order = torch.randperm(len(images), generator=generator)
        features, labels = images[int(order[step % len(images)])]
        on_device = {grid: maps.to(device).float() for grid, maps in features.items()}
        loss = neighbour_loss(neighbour_affinity(embed(on_device, weights, bias)), labels.to(device))
        search.zero_grad()
        loss.backward()
        search.step()
        schedule.step()
    named = {f"{rows}x{columns}": weight for (rows, columns), weight in weights.items()}
    return {name: value.detach().cpu() for name, value in {**named, "bias": bias}.items()}


def collect(
    backbone: Backbone, pixels: torch.Tensor, labels: np.ndarray, *, timestep: int, seed: int
) -> Observation | None:
    """What there is to learn from an image: `HxW` of each resolution, float16 [D, h·w], and `labels`, int32 [h, w].

    pixels: float32 [1, 3, S, S] in [−1, 1]. labels: int [H, W] of the same image, see `labels_on_grid`. None where none
    is known.
    """
    reader = FeatureReader()
    with hook_self_attention(backbone.checkpoint.unet, reader):
        grids = list(backbone.self_attention(pixels, timestep).maps)
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    known = labels_on_grid(labels, finest)
    if (known < 0).all():
        return None
    features = {f"{rows}x{columns}": maps[0] for (rows, columns), maps in reader.features(grids).items()}
    return {name: maps.half().cpu() for name, maps in features.items()} | {"labels": torch.from_numpy(known)}


def fit(observations: Sequence[Observation], device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The tensors and the layout of a state."""
    images = [(_features(each), each["labels"][None]) for each in observations]
    tensors = fit_features(images, device)
    return tensors, {name: tensors[name].shape[1] for name in tensors if name != "bias"}


def predict(tensors: Mapping[str, torch.Tensor], observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """float [N] affinity of the pairs of an image, and bool [N], whether they are alike."""
    features = {grid: maps.float() for grid, maps in _features(observation).items()}
    weights = {parsed_grid(name): value for name, value in tensors.items() if name != "bias"}
    affinity, alike = pair_affinities(
        neighbour_affinity(embed(features, weights, tensors["bias"])), observation["labels"][None]
    )
    return affinity.numpy(), alike.numpy()


def _features(observation: Observation) -> Features:
    return {parsed_grid(name): maps[None] for name, maps in observation.items() if name != "labels"}


class FeatureAffinity:
    """Affinity of neighbours in a batch, once its pass has run: visits layers (see `hook_self_attention`)."""

    def __init__(self, state: AffinityState) -> None:
        """Raises AffinityError where the state is of another kind."""
        if state.kind != "features":
            raise AffinityError(f"an affinity of {state.kind}, where one of features is needed")
        self.state = state
        self.reader = FeatureReader()

    def __call__(self, number: int, layer: Attention, read: torch.Tensor) -> None:
        self.reader(number, layer, read)

    @property
    def grid(self) -> Grid:
        """Of the finest resolution."""
        return max(map(parsed_grid, self.state.layout), key=lambda grid: grid[0] * grid[1])

    def affinity(self) -> dict[Grid, torch.Tensor]:
        """As of `neighbour_affinity`. Raises AffinityError where the pass had other layers."""
        layout = {parsed_grid(name): size for name, size in self.state.layout.items()}
        found = {tokens: read.shape[2] for tokens, read in self.reader.read.items()}
        if found != {rows * columns: size for (rows, columns), size in layout.items()}:
            raise AffinityError(
                f"the affinity is of {dict(self.state.layout)} channels by resolution; this pass had {found} by "
                "tokens: run at the resolution that it was learned at, or learn one for this"
            )
        features = self.reader.features(list(layout))
        device = next(iter(features.values())).device
        weights = {grid: self.state.tensors[f"{grid[0]}x{grid[1]}"].to(device) for grid in layout}
        return neighbour_affinity(embed(features, weights, self.state.tensors["bias"].to(device)))
