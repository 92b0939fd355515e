"""The file of a state, and the hooks into the self-attention of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import save
from small_models import small_unet, unet_inputs

from diffseg.affinity.state import (
    AffinityError,
    AffinityState,
    PassConditions,
    grid_name,
    hook_self_attention,
    layers_by_grid,
    parse_grid,
    read_state,
)


@pytest.fixture
def state(make_state: Callable[..., AffinityState]) -> AffinityState:
    return make_state("heads", {"8x8": 2}, {"weight": torch.tensor([1.0, 2]), "bias": torch.zeros(1)})


def test_a_state_is_read_back_from_its_bytes(state: AffinityState) -> None:
    data = state.to_bytes()
    assert state.to_bytes() == data
    copy = read_state(data, "state.safetensors")
    assert (copy.kind, copy.model_sha256, dict(copy.layout)) == (state.kind, state.model_sha256, {"8x8": 2})
    assert torch.equal(copy.tensors["weight"], state.tensors["weight"])
    assert copy.sha256 == state.sha256
    bound = read_state(replace(state, layers={"8x8": ("a", "b")}).to_bytes(), "state.safetensors")
    assert bound.layers == {"8x8": ["a", "b"]}
    assert bound.sha256 != state.sha256
    conditioned = read_state(replace(state, conditioning={"size": 64}).to_bytes(), "state.safetensors")
    assert conditioned.conditioning == {"size": 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_sha256": "cd" * 32}, "learned from tiny"),
        ({"timestep": 200}, r"timestep 300 and 128 x 128 pixels, .* timestep 200 .* --timestep 300 --resolution 128"),
        ({"resolution": 256}, r"256 x 256 pixels: run with --timestep 300 --resolution 128"),
        ({"layers": {"8x8": ["second", "first"]}}, "layers first, second at 8x8 tokens, but .* second, first there"),
        ({"layers": {"16x16": ["first", "second"]}}, "has none there"),
        (
            {"conditioning": {"size": 128}},
            r"with the conditioning \{\}, but those of this version have \{'size': 128\}",
        ),
    ],
    ids=["model", "timestep", "resolution", "layers", "grid", "conditioning"],
)
def test_a_state_of_other_passes_is_refused_with_what_differs(
    state: AffinityState, conditions: PassConditions, change: dict[str, Any], message: str
) -> None:
    bound = replace(state, layers=conditions.layers)
    bound.check_fits(conditions)
    with pytest.raises(AffinityError, match=message):
        bound.check_fits(replace(conditions, **change))


def test_a_file_of_an_earlier_version_keeps_its_hash_and_is_used_where_its_passes_are_the_same(
    state: AffinityState, conditions: PassConditions
) -> None:
    about = {"kind": "heads", "model": "tiny", "model_sha256": "ab" * 32, "timestep": 300, "resolution": 128}
    metadata = {"diffseg affinity 1": json.dumps({**about, "layout": {"8x8": 2}}, sort_keys=True)}
    data = save(dict(state.tensors), metadata=metadata)
    old = read_state(data, "old.safetensors")
    assert not old.layers
    assert old.sha256 == hashlib.sha256(data).hexdigest()
    old.check_fits(conditions)
    for change in ({"timestep": 0}, {"resolution": 64}, {"conditioning": {"guidance": 7.5}}):
        with pytest.raises(AffinityError, match="the affinity was learned"):
            old.check_fits(replace(conditions, **change))


def test_layers_are_named_by_the_grid_they_work_at() -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1")
    called: dict[str, list[str]] = {}
    names = {module: name for name, module in unet.named_modules()}

    def hook(number: int, layer: Attention, layer_inputs: torch.Tensor) -> None:
        side = round(layer_inputs.shape[1] ** 0.5)
        called.setdefault(f"{side}x{side}", []).append(names[layer])

    with hook_self_attention(unet, hook), torch.no_grad():
        unet(**inputs)
    assert layers_by_grid(unet, 8 * inputs["sample"].shape[-1]) == called


def test_other_files_are_refused_with_their_names(state: AffinityState) -> None:
    with pytest.raises(AffinityError, match=r"state\.safetensors: cannot be read as safetensors"):
        read_state(state.to_bytes()[:20], "state.safetensors")
    with pytest.raises(AffinityError, match=r"state\.safetensors: not a file of `diffseg fit`"):
        read_state(save({"weight": torch.zeros(1)}), "state.safetensors")
    damaged = save({"weight": torch.zeros(1)}, metadata={"diffseg affinity 1": '{"kind": "heads", "colour": 1}'})
    with pytest.raises(AffinityError, match=r"state\.safetensors: its metadata is damaged"):
        read_state(damaged, "state.safetensors")


def test_the_name_of_a_grid_is_parsed_back() -> None:
    assert grid_name((8, 12)) == "8x12"
    assert parse_grid("8x12") == (8, 12)


def test_layers_are_hooked_only_inside_the_block_and_in_the_order_of_the_pass() -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1")
    calls: list[tuple[int, tuple[int, ...]]] = []

    def hook(number: int, layer: Attention, layer_inputs: torch.Tensor) -> None:
        calls.append((number, tuple(layer_inputs.shape)))

    with hook_self_attention(unet, hook), torch.no_grad():
        unet(**inputs)
    assert [number for number, _ in calls] == list(range(len(calls)))
    assert {shape[1] for _, shape in calls} == {256, 64, 16, 4}
    assert not any(layer._forward_pre_hooks for layer in unet.modules())
