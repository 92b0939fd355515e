"""Affinity between positions, learned from confident labels with the model frozen: what both kinds of it share.

heads: how much each head of one resolution tells (the attention head of AFA; Ru et al., CVPR 2022, section 3.2).
features: a layer on what the self-attention reads (AffinityNet; Ahn & Kwak, CVPR 2018, section 3.2).

A label is known where it is ≥ 0. Two known positions are a pair, alike where their labels are; any other is no pair.

Axes: B images in the batch, P = h·w positions of one resolution, D what a layer reads of a position, N pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.stats import rankdata

from diffseg.attention.maps import Grid
from diffseg.attention.recorder import self_attention_layers

Kind = Literal["heads", "features"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMAT = "diffseg affinity 1"

UNKNOWN = -1
"""The label of a position that is in no pair."""

MAJORITY = 0.8
"""A position has the label of its pixels where at least this share of them have it."""

Visit = Callable[[int, Attention, torch.Tensor], None]
"""The number of a self-attention layer in the order of the pass, the layer, and what it reads, [B, P, D]."""


Observation = Mapping[str, torch.Tensor]
"""What there is to learn from one image; see `observe` of either kind."""


class AffinityError(ValueError):
    """A state that cannot be used: the message says what was looked for and what was found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AffinityState:
    """What was learned, and for what.

    model, model_sha256: of the checkpoint. timestep, resolution: of the passes that it was learned from. layout: by
    resolution, as h x w, the heads of its layers, or how much a layer reads of a position. tensors: float32.
    """

    kind: Kind
    model: str
    model_sha256: str
    timestep: int
    resolution: int
    layout: Mapping[str, int]
    tensors: Mapping[str, torch.Tensor]

    def to_bytes(self) -> bytes:
        """A safetensors file, the same bytes for the same state."""
        metadata = {name: getattr(self, name) for name in ("kind", "model", "model_sha256", "timestep", "resolution")}
        # under one key, as safetensors writes several in an order that changes from process to process
        told = {FORMAT: json.dumps({**metadata, "layout": dict(self.layout)}, sort_keys=True)}
        return save({name: value.contiguous() for name, value in self.tensors.items()}, metadata=told)

    @property
    def sha256(self) -> str:
        """Of the file, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def check_fits(self, model_sha256: str) -> None:
        """Raises AffinityError where it was learned from another checkpoint."""
        if self.model_sha256 != model_sha256:
            raise AffinityError(
                f"the affinity was learned from {self.model} (sha256 {self.model_sha256[:16]}), and this model is "
                f"another (sha256 {model_sha256[:16]}): `diffseg fit` learns one for it"
            )


def read_state(data: bytes, shown: str) -> AffinityState:
    """The state in the bytes of a file of `diffseg fit`. Raises AffinityError with what is `shown` where it is none."""
    try:
        tensors = load(data)
        told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise AffinityError(f"{shown}: cannot be read as safetensors: {error}") from error
    if FORMAT not in told:
        raise AffinityError(f"{shown}: is no state of `diffseg fit`, which says {FORMAT!r} in its metadata")
    return AffinityState(**json.loads(told[FORMAT]), tensors=tensors)


def parsed_grid(name: str) -> Grid:
    """The grid of a name in a layout, such as 32x32."""
    rows, columns = name.split("x")
    return int(rows), int(columns)


@contextmanager
def hook_self_attention(unet: UNet2DConditionModel, visit: Visit) -> Iterator[None]:
    """Within, every pass shows what its self-attention layers read, each before it runs."""
    seen = 0

    def hook(layer: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal seen
        assert isinstance(layer, Attention)
        visit(seen, layer, inputs[0] if inputs else options["hidden_states"])
        seen += 1

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self_attention_layers(unet)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def labels_on_grid(labels: np.ndarray, grid: Grid) -> np.ndarray:
    """int32 [h, w] of labels [H, W]: the one that most pixels of a position have, unknown where they do not agree.

    labels: int, unknown where < 0. The image is laid over the whole grid, as with fit="resize".
    """
    best, share = np.full(grid, UNKNOWN, dtype=np.int32), np.full(grid, MAJORITY, dtype=np.float32)
    for label in np.unique(labels[labels >= 0]):
        own = torch.from_numpy((labels == label).astype(np.float32))[None, None]
        here = torch.nn.functional.adaptive_avg_pool2d(own, grid)[0, 0].numpy()
        better = here >= share
        best[better], share[better] = label, here[better]
    return best


def area_under_curve(affinity: np.ndarray, alike: np.ndarray) -> float:
    """How often a pair that is alike has a higher affinity than one that is not; 0.5 at chance, NaN without both.

    affinity: float [N]. alike: bool [N].
    """
    positives, negatives = int(alike.sum()), int((~alike).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(affinity)[alike].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
