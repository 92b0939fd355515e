"""The file of a state, and the hooks into the self-attention of a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import save
from small_models import small_unet, unet_inputs

from diffseg.affinity.state import (
    AffinityError,
    AffinityState,
    grid_name,
    hook_self_attention,
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


def test_a_state_of_another_checkpoint_is_refused(state: AffinityState) -> None:
    state.check_fits(state.model_sha256)
    with pytest.raises(AffinityError, match="learned from tiny"):
        state.check_fits("cd" * 32)


def test_other_files_are_refused_with_their_names(state: AffinityState) -> None:
    with pytest.raises(AffinityError, match=r"state\.safetensors: cannot be read as safetensors"):
        read_state(state.to_bytes()[:20], "state.safetensors")
    with pytest.raises(AffinityError, match=r"state\.safetensors: not a file of `diffseg fit`"):
        read_state(save({"weight": torch.zeros(1)}), "state.safetensors")


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
