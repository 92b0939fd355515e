"""What both kinds of learned affinity share: the file of a state, and hooks into the self-attention of the model.

The affinity of two positions says how likely they belong together. It is learned from confident labels with the model
frozen, in one of two kinds:

* heads: a weight for each attention head of one resolution (AFA; Ru et al., CVPR 2022, section 3.2).
* features: a linear layer on the inputs of the self-attention layers (AffinityNet; Ahn & Kwak, CVPR 2018, section 3.2).

Axes: B images in the batch, P = h·w positions of one resolution, D channels of a layer's input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffseg.attention.layers import attention_layers, self_attention_layers
from diffseg.attention.maps import Grid
from diffseg.model.backbone import PIXELS_PER_LATENT
from diffseg.safetensors_metadata import read_metadata

Kind = Literal["heads", "features"]

FORMAT = "diffseg affinity 1"
"""Key of the metadata in the file of a state; its number is the version of the format."""

LayerHook = Callable[[int, Attention, torch.Tensor], None]
"""Receives the number of a self-attention layer in the order of the pass, the layer, and its input, [B, P, D]."""

Observation = Mapping[str, torch.Tensor]
"""The tensors that are collected from one image to learn from; see `collect` of either kind."""


class AffinityError(ValueError):
    """A state that cannot be used. The message says what was expected and what was found."""


@dataclass(frozen=True, kw_only=True)
class PassConditions:
    """What a state is bound to: what determines which numbers the hooks of a pass receive.

    Attributes:
        model_sha256: Hash of the checkpoint.
        timestep: Diffusion timestep of the pass.
        resolution: Side of the model's square in pixels.
        layers: Names of the self-attention layers at each resolution, see `layers_by_grid`.
        conditioning: What besides text conditions the pass, where earlier versions did without it; see
            `diffseg.model.backbone.Backbone.conditioning`.
    """

    model_sha256: str
    timestep: int
    resolution: int
    layers: Mapping[str, Sequence[str]]
    conditioning: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class AffinityState:
    """A learned affinity and the conditions that it was learned under.

    Attributes:
        kind: heads or features.
        model: Name of the checkpoint.
        model_sha256: Hash of the checkpoint.
        timestep: Diffusion timestep of the passes.
        resolution: Side of the model's square in pixels.
        layout: By resolution, as HxW in tokens: the number of heads of its layers, or of channels of a layer's input.
        tensors: float32, the learned weights.
        layers: The names of the self-attention layers at each resolution of the layout, in the order of the pass; empty
            in the files of earlier versions.
        conditioning: What besides text conditioned the passes, see `PassConditions`.
    """

    kind: Kind
    model: str
    model_sha256: str
    timestep: int
    resolution: int
    layout: Mapping[str, int]
    tensors: Mapping[str, torch.Tensor]
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    conditioning: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return a safetensors file, which has the same bytes for the same state."""
        fields = {name: getattr(self, name) for name in ("kind", "model", "model_sha256", "timestep", "resolution")}
        fields["layout"] = dict(self.layout)
        if self.layers:  # so that the file of an earlier version keeps its hash, which runs record
            fields["layers"] = {grid: list(names) for grid, names in self.layers.items()}
        if self.conditioning:
            fields["conditioning"] = dict(self.conditioning)
        # There is a single key, because safetensors writes several in an order that changes from process to process.
        metadata = {FORMAT: json.dumps(fields, sort_keys=True)}
        return save({name: value.contiguous() for name, value in self.tensors.items()}, metadata=metadata)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def check_fits(self, now: PassConditions) -> None:
        """Check that the state was learned from the same passes as those of a run.

        A file of an earlier version does not name its layers. They follow from the checkpoint and the resolution, which
        it does record, so it is used where both are the same and the pass is conditioned by nothing that is newer.

        Raises:
            AffinityError: The checkpoint, the timestep, the resolution, the layers or the conditioning differ.
        """
        if self.model_sha256 != now.model_sha256:
            raise AffinityError(
                f"the affinity was learned from {self.model} (sha256 {self.model_sha256[:16]}), but this model has "
                f"sha256 {now.model_sha256[:16]}: run `diffseg fit` with this model"
            )
        if (self.timestep, self.resolution) != (now.timestep, now.resolution):
            raise AffinityError(
                f"the affinity was learned at timestep {self.timestep} and {self.resolution} x {self.resolution} "
                f"pixels, but this run has timestep {now.timestep} and {now.resolution} x {now.resolution} pixels: run "
                f"with --timestep {self.timestep} --resolution {self.resolution}, or run `diffseg fit` on a run with "
                "the timestep and the resolution of this one"
            )
        if dict(self.conditioning) != dict(now.conditioning):
            raise AffinityError(
                f"the affinity was learned from passes with the conditioning {dict(self.conditioning)}, but those of "
                f"this version have {dict(now.conditioning)}: run `diffseg fit` again"
            )
        for grid, names in self.layers.items():
            found = now.layers.get(grid, ())
            if list(names) != list(found):
                raise AffinityError(
                    f"the affinity was learned from the self-attention layers {', '.join(names)} at {grid} tokens, but "
                    f"this model has {', '.join(found) or 'none'} there: run `diffseg fit` again"
                )


def read_state(data: bytes, source: str) -> AffinityState:
    """Read a state from the bytes of a file that `diffseg fit` wrote.

    Args:
        data: The bytes of the file.
        source: Name of the file in error messages.

    Raises:
        AffinityError: The bytes are something else.
    """
    try:
        tensors = load(data)
        metadata = read_metadata(data)
    except (SafetensorError, ValueError) as error:
        raise AffinityError(f"{source}: cannot be read as safetensors: {error}") from error
    if FORMAT not in metadata:
        raise AffinityError(f"{source}: not a file of `diffseg fit`; expected {FORMAT!r} in its metadata")
    try:
        return AffinityState(**json.loads(metadata[FORMAT]), tensors=tensors)
    except (ValueError, TypeError) as error:
        raise AffinityError(
            f"{source}: its metadata is damaged or was written by a later version ({error}); run `diffseg fit` again"
        ) from error


def grid_name(grid: Grid) -> str:
    """Return the name of a grid in a layout, such as 32x32."""
    return f"{grid[0]}x{grid[1]}"


def parse_grid(name: str) -> Grid:
    """Return the grid of a name such as 32x32."""
    rows, columns = name.split("x")
    return int(rows), int(columns)


def layers_by_grid(unet: UNet2DConditionModel, resolution: int) -> dict[str, list[str]]:
    """Return the names of the self-attention layers at each resolution of a pass, in the order of the pass.

    Args:
        unet: The model.
        resolution: Side of the model's square in pixels.

    Returns:
        Names of modules of the UNet, by the name of their grid in tokens, such as 32x32.
    """
    names: dict[str, list[str]] = {}
    for layer in attention_layers(unet):
        if not layer.module.is_cross_attention:
            side = resolution // PIXELS_PER_LATENT // 2**layer.level
            names.setdefault(grid_name((side, side)), []).append(layer.name)
    return names


@contextmanager
def hook_self_attention(unet: UNet2DConditionModel, hook: LayerHook) -> Iterator[None]:
    """Call `hook` before each self-attention layer in every pass of the UNet inside the `with` block."""
    calls = 0

    def pre_hook(layer: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal calls
        assert isinstance(layer, Attention)
        hook(calls, layer, inputs[0] if inputs else options["hidden_states"])
        calls += 1

    handles = [layer.register_forward_pre_hook(pre_hook, with_kwargs=True) for layer in self_attention_layers(unet)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
