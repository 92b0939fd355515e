"""Which heads tell what belongs together: one weight for each head of a resolution, and a bias (AFA, equation 3).

W = σ(Σ_c w_c (A_c + A_cᵀ) + b), A_c the self-attention of a head, in units of what it is where all is seen alike.

Axes: B images in the batch, C heads of all layers of the resolution, P = h·w its positions, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
from diffseg.attention.maps import Grid
from diffseg.model.backbone import PIXELS_PER_LATENT, Backbone

SIDE = 32
"""Tokens a side at most of the resolution whose heads are weighed: the finest of the UNet that has no more."""

RADIUS = 8
"""In tokens, how far apart the positions of a pair may be along either axis."""

PAIRS = 2000
"""Of each sort, alike and not, that are taken of an image."""

SHRINK = 1e-4
"""Weight of the squared weights in the loss: without it they grow for ever where all pairs are told apart."""

ITERATIONS = 200

Heads = Callable[[int, torch.Tensor], None]
"""The number of a head in the order of the pass, and its self-attention, float32 [B, P, P], rows sum to 1."""


class HeadReader:
    """Visits layers (see `hook_self_attention`), and gives the self-attention of each head of one resolution to `take`.

    A head at a time is in memory. Of several passes, each told of other names, the first counts. Probabilities are
    float32 whatever the weights are.
    """

    def __init__(self, tokens: int, take: Heads) -> None:
        self.tokens, self.take = tokens, take
        self.heads = 0
        self._seen: set[Attention] = set()

    def __call__(self, number: int, layer: Attention, read: torch.Tensor) -> None:
        if read.shape[1] != self.tokens or layer in self._seen:
            return
        self._seen.add(layer)
        queries, keys = (
            each(read).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float() for each in (layer.to_q, layer.to_k)
        )
        for head in range(layer.heads):
            scores = torch.matmul(queries[:, head], keys[:, head].transpose(1, 2)).mul_(layer.scale)
            self.take(self.heads, torch.softmax(scores, dim=-1, out=scores))
            self.heads += 1


def choose_pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [N] first and int64 [N] second positions of pairs of int [h, w] labels, and bool [N], whether alike.

    Up to `PAIRS` of each sort, as many of both as there are of the rarer one, drawn with the seed.
    """
    places = np.arange(labels.size).reshape(labels.shape)
    first, second = [], []
    for down, right in half_square(RADIUS):
        height, width = labels.shape
        own = places[: max(0, height - down), max(0, -right) : max(0, width - max(0, right))]
        first.append(own.ravel())
        second.append((own + down * width + right).ravel())
    one, other = np.concatenate(first), np.concatenate(second)
    flat = labels.ravel()
    known = (flat[one] >= 0) & (flat[other] >= 0)
    one, other = one[known], other[known]
    alike = flat[one] == flat[other]
    generator = np.random.default_rng(seed)
    count = min(PAIRS, int(alike.sum()), int((~alike).sum()))
    chosen = np.concatenate([generator.permutation(np.flatnonzero(alike == sort))[:count] for sort in (True, False)])
    return one[chosen], other[chosen], alike[chosen]


def half_square(radius: int) -> list[Grid]:
    """Rows and columns to the positions at most `radius` away along either axis, of two opposite ones the later."""
    reach = range(-radius, radius + 1)
    return [(y, x) for y in range(radius + 1) for x in reach if (y, x) > (0, 0)]


def pair_attention(attention: torch.Tensor, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """float32 [N]: a head's (A + Aᵀ) / 2 between positions of float32 [P, P], 1 where all is seen alike."""
    one, other = (torch.from_numpy(each).to(attention.device) for each in (first, second))
    return (attention[one, other] + attention[other, one]) * (len(attention) / 2)


def pair_loss(affinity: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """½ mean(1 − W) over pairs that are alike + ½ mean(W) over those that are not (AFA, equation 4).

    affinity: [N] in (0, 1). alike: int [N]: 1, 0, or `UNKNOWN`, which counts for nothing. A sort that is not there
    counts 0.
    """
    parts = [
        torch.where(alike == sort, (sort - affinity).abs(), 0).sum() / (alike == sort).sum().clamp_min(1)
        for sort in (1, 0)
    ]
    return (parts[0] + parts[1]) / 2


def fit_heads(channels: torch.Tensor, alike: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights of heads, float32 [C], and a bias [1], that tell pairs apart; always the same for the same pairs.

    channels: float [N, C] of `pair_attention`. alike: int [N], see `pair_loss`.
    """
    inputs = channels.double()
    weight = torch.zeros(channels.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = pair_loss(torch.sigmoid(inputs @ weight + bias), alike) + SHRINK * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    return {"weight": weight.detach().float(), "bias": bias.detach().float()}


def collect(
    backbone: Backbone, pixels: torch.Tensor, labels: np.ndarray, *, timestep: int, seed: int
) -> Observation | None:
    """What there is to learn from an image: `HxW` of the resolution, float32 [N, C], and `alike`, uint8 [N].

    pixels: float32 [1, 3, S, S] in [−1, 1]. labels: int [H, W] of the same image, see `labels_on_grid`. None where it
    has no two labels near one another.
    """
    grid = _grid_of(pixels)
    first, second, alike = choose_pairs(labels_on_grid(labels, grid), seed)
    if not len(first):
        return None
    channels: list[torch.Tensor] = []
    reader = HeadReader(grid[0] * grid[1], lambda _, maps: channels.append(pair_attention(maps[0], first, second)))
    with hook_self_attention(backbone.checkpoint.unet, reader):
        backbone.self_attention(pixels, timestep)
    if not channels:
        raise AffinityError(f"{backbone.checkpoint.name} has no self-attention at {grid[0]} x {grid[1]} tokens")
    return {
        f"{grid[0]}x{grid[1]}": torch.stack(channels, dim=1).cpu(),
        "alike": torch.from_numpy(alike.astype(np.uint8)),
    }


def fit(observations: Sequence[Observation], device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The tensors and the layout of a state. It is learned on the CPU: there is little to it."""
    name = next(name for name in observations[0] if name != "alike")
    channels, alike = (torch.cat([each[part] for each in observations]) for part in (name, "alike"))
    return fit_heads(channels, alike.to(torch.int8)), {name: channels.shape[1]}


def predict(tensors: Mapping[str, torch.Tensor], observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """float [N] affinity of the pairs of an image, and bool [N], whether they are alike."""
    name = next(name for name in observation if name != "alike")
    affinity = observation[name] @ tensors["weight"] + tensors["bias"]
    return affinity.numpy(), observation["alike"].numpy().astype(bool)


def _grid_of(pixels: torch.Tensor) -> Grid:
    side = pixels.shape[-1] // PIXELS_PER_LATENT
    while side > SIDE:
        side //= 2
    return side, side


class HeadAffinity:
    """Affinity of a batch, summed while its pass runs: visits layers (see `hook_self_attention`)."""

    def __init__(self, state: AffinityState) -> None:
        """Raises AffinityError where the state is of another kind."""
        if state.kind != "heads":
            raise AffinityError(f"an affinity of {state.kind}, where one of heads is needed")
        ((name, self.heads),) = state.layout.items()
        self.grid = parsed_grid(name)
        self.weight, self.bias = state.tensors["weight"].tolist(), float(state.tensors["bias"])
        self.total: torch.Tensor | None = None
        self.reader = HeadReader(self.grid[0] * self.grid[1], self._add)

    def __call__(self, number: int, layer: Attention, read: torch.Tensor) -> None:
        self.reader(number, layer, read)

    def _add(self, head: int, attention: torch.Tensor) -> None:
        if head < self.heads:
            self.total = torch.zeros_like(attention) if self.total is None else self.total
            self.total.add_(attention, alpha=self.weight[head] * attention.shape[-1] / 2)

    def affinity(self) -> torch.Tensor:
        """float32 [B, P, P], symmetric and in (0, 1). Raises AffinityError where the pass had other heads."""
        if self.total is None or self.reader.heads != self.heads:
            height, width = self.grid
            raise AffinityError(
                f"the affinity is of {self.heads} heads at {height} x {width} tokens; this pass had "
                f"{self.reader.heads}: run at the resolution that it was learned at, or learn one for this"
            )
        return torch.sigmoid(self.total + self.total.transpose(1, 2) + self.bias)
