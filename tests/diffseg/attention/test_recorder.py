"""The recorder's contract: the UNet's output is unchanged, and the maps are what its layers attend to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_models import small_unet, unet_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from diffseg.attention import blockwise
from diffseg.attention.layers import self_attention_layers
from diffseg.attention.maps import Grid
from diffseg.attention.recorder import AttentionRecorder
from diffseg.attention.sums import latent_multiple
from diffseg.model.checkpoint import load_checkpoint

LAYERS_AT_16 = {
    "sd1": {(16, 16): 5, (8, 8): 5, (4, 4): 5, (2, 2): 1},
    "sd2": {(16, 16): 5, (8, 8): 5, (4, 4): 5, (2, 2): 1},
    "sdxl": {(8, 8): 10, (4, 4): 18},
}
RATIO = {"sd1": 1, "sd2": 1, "sdxl": 2}


def recorded(record: Callable, unet: UNet2DConditionModel, inputs: dict[str, Any]) -> Any:
    others = {name: value for name, value in inputs.items() if name != "sample"}
    return record(AttentionRecorder(unet), inputs["sample"], **others)


def maps_by_hooks(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Return {tokens: float64 [B, P, P]}, computed from the layers' inputs, averaged over heads and layers."""
    layer_maps: dict[int, list[torch.Tensor]] = {}

    def hook(layer: Any, args: tuple, kwargs: dict) -> None:
        states = args[0]
        queries, keys = (
            linear(states).double().unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for linear in (layer.to_q, layer.to_k)
        )
        logits = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        layer_maps.setdefault(states.shape[1], []).append(logits.softmax(dim=-1).mean(dim=1))

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith(".attn1")
    ]
    with torch.no_grad():
        unet(**inputs)
    for handle in handles:
        handle.remove()
    return {tokens: torch.stack(maps).mean(dim=0) for tokens, maps in layer_maps.items()}


@pytest.mark.parametrize("layout", LAYERS_AT_16)
@pytest.mark.parametrize(("batch", "grid"), [(1, (16, 16)), (3, (16, 16)), (2, (16, 24)), (1, (24, 8))])
def test_the_output_is_unchanged_and_maps_agree_with_the_layers(layout: str, batch: int, grid: Grid) -> None:
    unet = small_unet(layout)
    inputs = unet_inputs(layout, batch, grid)
    with torch.no_grad():
        expected = unet(**inputs).sample
    attention, output = recorded(AttentionRecorder.with_output, unet, inputs)
    assert (output - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1, "an output near zero would agree with anything"

    by_hooks = maps_by_hooks(unet, inputs)
    ratio = RATIO[layout]
    assert {h * w for h, w in attention.maps} == set(by_hooks)
    assert max(attention.maps) == (grid[0] // ratio, grid[1] // ratio)
    for (height, width), maps in attention.maps.items():
        assert maps.dtype == torch.float32
        assert maps.shape == (batch, height * width, height * width)
        torch.testing.assert_close(maps.double(), by_hooks[height * width], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(batch, height * width))


@pytest.mark.parametrize("layout", LAYERS_AT_16)
def test_layers_are_counted_by_resolution(layout: str) -> None:
    unet = small_unet(layout)
    attention = recorded(AttentionRecorder.self_attention, unet, unet_inputs(layout))
    assert attention.layers == LAYERS_AT_16[layout]
    assert len(self_attention_layers(unet)) == sum(LAYERS_AT_16[layout].values())


def test_the_output_of_the_embedded_model_is_unchanged() -> None:
    checkpoint = load_checkpoint("tiny")
    side = checkpoint.resolution // 8
    sample = torch.randn(2, 4, side, side)
    context = checkpoint.context.expand(2, -1, -1)
    inputs = {"sample": sample, "timestep": checkpoint.timestep, "encoder_hidden_states": context}
    with torch.no_grad():
        expected = checkpoint.unet(**inputs).sample
    attention, output = recorded(AttentionRecorder.with_output, checkpoint.unet, inputs)
    assert (output - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1
    assert sum(attention.layers.values()) == 16


def test_the_maps_of_these_tests_are_far_from_uniform() -> None:
    attention = recorded(AttentionRecorder.self_attention, small_unet("sd1"), unet_inputs("sd1"))
    assert attention.maps[16, 16].max() > 5 / 256


@pytest.mark.parametrize("layout", LAYERS_AT_16)
def test_a_pass_ends_after_the_last_layer_that_is_needed(layout: str) -> None:
    unet = small_unet(layout)
    inputs = unet_inputs(layout)
    ran: list[str] = []
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    early = recorded(AttentionRecorder.self_attention, unet, inputs)
    stopped_after, ran[:] = set(ran), []
    late, _ = recorded(AttentionRecorder.with_output, unet, inputs)
    skipped = set(ran) - stopped_after
    last = (
        "up_blocks.3.attentions.2.transformer_blocks.0"
        if layout != "sdxl"
        else ("up_blocks.1.attentions.2.transformer_blocks.1")
    )
    assert {"conv_out", f"{last}.attn2", f"{last}.attn1.to_out.0", f"{last}.ff"} <= skipped
    assert f"{last}.attn1.to_q" in stopped_after
    if layout == "sdxl":
        assert {"up_blocks.2.resnets.0", "up_blocks.1.upsamplers.0"} <= skipped
    for grid, maps in early.maps.items():
        assert torch.equal(maps, late.maps[grid])


@pytest.mark.parametrize("elements", [1, 5_000, 2**30])
def test_the_block_size_does_not_change_the_result(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, inputs = small_unet("sd2"), unet_inputs("sd2", batch=2)
    in_one_block, output = recorded(AttentionRecorder.with_output, unet, inputs)
    monkeypatch.setattr(blockwise, "WORKSPACE_ELEMENTS", elements)
    in_blocks, output_in_blocks = recorded(AttentionRecorder.with_output, unet, inputs)
    torch.testing.assert_close(output_in_blocks, output, rtol=0, atol=1e-5)
    for grid, maps in in_one_block.maps.items():
        torch.testing.assert_close(in_blocks.maps[grid], maps, rtol=1e-3, atol=1e-6)


class _LargestResult(TorchDispatchMode):
    """Counts the elements of the largest tensor that any operation returns, except for the accumulators [B, P, P]."""

    def __init__(self, accumulators: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.accumulators = accumulators
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) not in self.accumulators:
                self.largest = max(self.largest, tensor.numel())
        return result


def test_the_probabilities_of_all_heads_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1", grid=(32, 32))
    accumulators = {(*batch, side**2, side**2) for side in (32, 16, 8, 4) for batch in ((1,), ())}

    def largest(elements: int) -> int:
        monkeypatch.setattr(blockwise, "WORKSPACE_ELEMENTS", elements)
        with _LargestResult(accumulators) as mode:
            recorded(AttentionRecorder.self_attention, unet, inputs)
        return mode.largest

    all_heads = 8 * 1024 * 1024
    assert largest(2**30) >= all_heads, "with a single block the check must find the tensor"
    assert largest(2**16) < all_heads / 8


def test_processors_are_restored_after_success_and_after_an_error() -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1")
    before = [layer.processor for layer in self_attention_layers(unet)]
    recorded(AttentionRecorder.self_attention, unet, inputs)
    assert [layer.processor for layer in self_attention_layers(unet)] == before
    with pytest.raises(RuntimeError):
        AttentionRecorder(unet).self_attention(inputs["sample"], 300, encoder_hidden_states=torch.randn(1, 7, 5))
    assert [layer.processor for layer in self_attention_layers(unet)] == before
    with torch.no_grad():
        assert torch.isfinite(unet(**inputs).sample).all()


@pytest.mark.parametrize("grid", [(16, 20), (12, 16), (15, 15)])
def test_latents_that_do_not_divide_are_refused(grid: Grid) -> None:
    unet = small_unet("sd1")
    assert latent_multiple(unet) == 8
    with pytest.raises(ValueError, match=f"latents of {grid[0]} x {grid[1]}: both sides must be multiples of 8"):
        recorded(AttentionRecorder.self_attention, unet, unet_inputs("sd1", grid=grid))


def test_a_unet_without_self_attention_is_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        norm_num_groups=4,
        layers_per_block=1,
    )
    with pytest.raises(ValueError, match="no self-attention layers"):
        AttentionRecorder(unet)


def test_a_batch_is_sliced_into_images() -> None:
    attention = recorded(AttentionRecorder.self_attention, small_unet("sd1"), unet_inputs("sd1", batch=2))
    first, second = attention.of_images(0, 1), attention.of_images(1, 2)
    assert first.layers == attention.layers
    assert torch.equal(first.maps[8, 8], attention.maps[8, 8][:1])
    assert not torch.equal(first.maps[8, 8], second.maps[8, 8])
