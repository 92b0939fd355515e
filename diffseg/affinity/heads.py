"""Dense affinity from attention heads: one weight for each head of a resolution, and a bias (AFA, equation 3).

W = σ(Σ_c w_c (A_c + A_cᵀ) + b), where A_c is the self-attention of head c in units of uniform attention.

Axes: B images in the batch, C heads of all layers of the resolution, P = h·w its positions, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers.models.attention_processor import Attention

from diffseg.affinity.pairs import choose_pairs, labels_on_grid, pair_loss
from diffseg.affinity.state import (
    AffinityError,
    AffinityState,
    Observation,
    grid_name,
    hook_self_attention,
    parse_grid,
)
from diffseg.attention.maps import Grid
from diffseg.model.backbone import PIXELS_PER_LATENT, Backbone

SIDE = 32
"""Largest side, in tokens, of the resolution whose heads are used; it is the finest of the UNet within this limit."""

SHRINK = 1e-4
"""Weight of the squared weights in the loss. Without it they grow without bound where all pairs can be separated."""

ITERATIONS = 200
"""Largest number of iterations of L-BFGS."""

SAME_SEGMENT = "alike"
"""Key of the pair classes in an observation. It is part of the file format of collected observations."""

HeadCallback = Callable[[int, torch.Tensor], None]
"""Receives the number of a head in the order of the pass and its self-attention, float32 [B, P, P], rows sum to 1."""


class HeadReader:
    """A layer hook (see `hook_self_attention`) that passes each head's self-attention at one resolution to a callback.

    Only one head at a time is in memory. If several passes follow each other, each with other names, only the first
    counts. Probabilities are float32 whatever the dtype of the weights is.
    """

    def __init__(self, tokens: int, callback: HeadCallback) -> None:
        self.tokens, self.callback = tokens, callback
        self.heads = 0
        self._seen: set[Attention] = set()

    def __call__(self, number: int, layer: Attention, inputs: torch.Tensor) -> None:
        if inputs.shape[1] != self.tokens or layer in self._seen:
            return
        self._seen.add(layer)
        queries, keys = (
            project(inputs).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
            for project in (layer.to_q, layer.to_k)
        )
        for head in range(layer.heads):
            scores = torch.matmul(queries[:, head], keys[:, head].transpose(1, 2)).mul_(layer.scale)
            self.callback(self.heads, torch.softmax(scores, dim=-1, out=scores))
            self.heads += 1


def pair_attention(attention: torch.Tensor, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """Return (A + Aᵀ) / 2 of a head between pairs of positions, in units of uniform attention.

    Args:
        attention: float32 [P, P], rows sum to 1.
        first: int64 [N], positions.
        second: int64 [N], positions.

    Returns:
        float32 [N]; 1 where attention is uniform.
    """
    a, b = (torch.from_numpy(positions).to(attention.device) for positions in (first, second))
    return (attention[a, b] + attention[b, a]) * (len(attention) / 2)


def fit_heads(channels: torch.Tensor, pair_class: torch.Tensor) -> dict[str, torch.Tensor]:
    """Fit the weights that separate the pairs; the same pairs always give the same weights.

    Args:
        channels: float [N, C], the result of `pair_attention` for each head.
        pair_class: int [N], see `pair_loss`.

    Returns:
        `weight`, float32 [C], and `bias`, float32 [1].
    """
    inputs = channels.double()
    weight = torch.zeros(channels.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = pair_loss(torch.sigmoid(inputs @ weight + bias), pair_class) + SHRINK * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return {"weight": weight.detach().float(), "bias": bias.detach().float()}


def collect(
    backbone: Backbone, pixels: torch.Tensor, labels: np.ndarray, *, timestep: int, seed: int
) -> Observation | None:
    """Collect the attention of all heads between pairs of positions of an image.

    Args:
        backbone: The frozen model.
        pixels: float32 [1, 3, S, S] in [−1, 1].
        labels: int [H, W] of the same image, see `labels_on_grid`.
        timestep: Diffusion timestep of the pass.
        seed: Seed of the drawn pairs.

    Returns:
        float32 [N, C] under the name of the resolution, HxW in tokens, and uint8 [N] under `SAME_SEGMENT`. None if no
        two positions near each other have different labels.

    Raises:
        AffinityError: The model has no self-attention at the resolution.
    """
    grid = _grid_of(pixels)
    first, second, same_segment = choose_pairs(labels_on_grid(labels, grid), seed)
    if not len(first):
        return None
    channels: list[torch.Tensor] = []
    reader = HeadReader(grid[0] * grid[1], lambda _, maps: channels.append(pair_attention(maps[0], first, second)))
    with hook_self_attention(backbone.checkpoint.unet, reader):
        backbone.self_attention(pixels, timestep)
    if not channels:
        raise AffinityError(f"{backbone.checkpoint.name} has no self-attention at {grid[0]} x {grid[1]} tokens")
    return {
        grid_name(grid): torch.stack(channels, dim=1).cpu(),
        SAME_SEGMENT: torch.from_numpy(same_segment.astype(np.uint8)),
    }


def fit(observations: Sequence[Observation], device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the tensors and the layout of a state. The fit is small and runs on the CPU whatever `device` is."""
    name = next(name for name in observations[0] if name != SAME_SEGMENT)
    channels, pair_class = (torch.cat([each[key] for each in observations]) for key in (name, SAME_SEGMENT))
    return fit_heads(channels, pair_class.to(torch.int8)), {name: channels.shape[1]}


def predict(tensors: Mapping[str, torch.Tensor], observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Return the affinity of the pairs of an image, before σ, float [N], and whether they are of the same segment."""
    name = next(name for name in observation if name != SAME_SEGMENT)
    affinity = observation[name] @ tensors["weight"] + tensors["bias"]
    return affinity.numpy(), observation[SAME_SEGMENT].numpy().astype(bool)


def _grid_of(pixels: torch.Tensor) -> Grid:
    """Return the finest grid of the UNet that is at most `SIDE` tokens a side."""
    side = pixels.shape[-1] // PIXELS_PER_LATENT
    while side > SIDE:
        side //= 2
    return side, side


class HeadAffinity:
    """A layer hook (see `hook_self_attention`) that accumulates the affinity of a batch during its pass.

    Raises:
        AffinityError: The state is of another kind.
    """

    def __init__(self, state: AffinityState) -> None:
        if state.kind != "heads":
            raise AffinityError(f"this is an affinity of {state.kind}; expected an affinity of heads")
        ((name, self.heads),) = state.layout.items()
        self.grid = parse_grid(name)
        self.weight, self.bias = state.tensors["weight"].tolist(), float(state.tensors["bias"])
        self.total: torch.Tensor | None = None
        self.reader = HeadReader(self.grid[0] * self.grid[1], self._add)

    def __call__(self, number: int, layer: Attention, inputs: torch.Tensor) -> None:
        self.reader(number, layer, inputs)

    def _add(self, head: int, attention: torch.Tensor) -> None:
        if head < self.heads:
            self.total = torch.zeros_like(attention) if self.total is None else self.total
            self.total.add_(attention, alpha=self.weight[head] * attention.shape[-1] / 2)

    def affinity(self) -> torch.Tensor:
        """Return the affinity between all positions, float32 [B, P, P], symmetric and in (0, 1).

        Raises:
            AffinityError: The pass had another number of heads than the state.
        """
        if self.total is None or self.reader.heads != self.heads:
            height, width = self.grid
            raise AffinityError(
                f"the affinity is of {self.heads} heads at {height} x {width} tokens; this pass had "
                f"{self.reader.heads}: run at the resolution that it was learned at, or learn one for this resolution"
            )
        return torch.sigmoid(self.total + self.total.transpose(1, 2) + self.bias)
