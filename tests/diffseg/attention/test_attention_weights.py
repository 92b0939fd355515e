"""Weights of heads and layers (GoCA), against the formula in float64, and the maps that they combine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import UNETS, small_unet, unet_inputs

from diffseg.attention.attention_weights import WeightedMaps, head_weights, reference_layer, to_grid
from diffseg.attention.layers import attention_layers
from diffseg.attention.name_context import NameContext
from diffseg.attention.recorder import AttentionRecorder


def test_a_head_counts_by_the_agreement_of_what_it_adds_with_the_output_of_the_layer() -> None:
    outputs, projection = torch.randn(2, 3, 5, 4), torch.randn(12, 12)
    parts = [outputs[:, head].double() @ projection[:, 4 * head : 4 * head + 4].T.double() for head in range(3)]
    agreement = torch.stack([(part * sum(parts)).sum(dim=-1) for part in parts], dim=1).clamp_min(0)
    expected = agreement / agreement.sum(dim=1, keepdim=True)
    torch.testing.assert_close(head_weights(outputs, projection).double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head_weights(outputs * 0, projection), torch.full((2, 3, 5), 1 / 3))


def test_maps_on_another_grid_keep_the_sums_of_their_rows() -> None:
    maps = torch.rand(2, 24, 24).softmax(dim=-1)
    coarse = to_grid(maps, (4, 6), (2, 3))
    by_hand = maps.view(2, 4, 6, 4, 6)
    assert coarse[1, 4, 2] == pytest.approx(by_hand[1, 2:, 2:4, :2, 4:].sum().item() / 4, rel=1e-5)
    torch.testing.assert_close(coarse.sum(dim=-1), torch.ones(2, 6))
    fine = to_grid(coarse, (2, 3), (4, 6))
    torch.testing.assert_close(fine.sum(dim=-1), torch.ones(2, 24))
    torch.testing.assert_close(to_grid(fine, (4, 6), (2, 3)), coarse)


def test_a_layer_counts_by_the_agreement_of_its_self_attention_with_the_reference() -> None:
    layers = [layer for layer in attention_layers(small_unet("sd1")) if layer.level == 1][:4]
    maps = WeightedMaps(layers, {0: (32, 32), 1: (2, 2)})
    own, spread = torch.eye(4)[None], torch.full((1, 4, 4), 0.25)
    maps.affinity, first, second = own, layers[1].name, layers[3].name
    maps.self_maps = {layers[0].name: own, layers[2].name: spread}
    maps.cross_maps = {first: torch.ones(1, 4, 1), second: torch.zeros(1, 4, 1)}
    assert maps.weights()[first].item() == pytest.approx(0.8)
    assert maps.weights()[second].item() == pytest.approx(0.2)
    torch.testing.assert_close(maps.cross_attention().maps[2, 2], torch.full((1, 1, 4), 0.8))


def test_the_reference_of_sd_1_5_is_the_second_block_of_the_third_level_upwards() -> None:
    layers = [layer for layer in attention_layers(small_unet("sd1")) if layer.module.is_cross_attention]
    assert reference_layer(layers).name == "up_blocks.2.attentions.1.transformer_blocks.0.attn2"
    layers = [layer for layer in attention_layers(small_unet("sdxl")) if layer.module.is_cross_attention]
    assert reference_layer(layers).name.startswith("up_blocks.0.attentions.")


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_weighted_maps_of_a_pass_are_the_weighted_sum_of_all_heads_and_layers(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, inputs = small_unet(layout), unet_inputs(layout, 2, (16, 16))
    inputs["latents"] = inputs.pop("sample")
    recorder, kept = AttentionRecorder(unet), list[WeightedMaps]()
    plain = recorder.self_attention(**inputs)
    put_together = WeightedMaps.cross_attention

    def keep(self: WeightedMaps) -> Any:
        kept.append(self)
        return put_together(self)

    monkeypatch.setattr(WeightedMaps, "cross_attention", keep)
    tokens = torch.randn(2, 5, UNETS[layout]["cross_attention_dim"])
    cross = [layer for layer in attention_layers(unet) if layer.module.is_cross_attention]
    with torch.no_grad():
        keys = {layer.name: layer.module.to_k(tokens) for layer in cross}
    names = NameContext(keys=keys, weights=torch.eye(5).expand(2, -1, -1))
    beside, maps = recorder.attention_beside(**inputs, names=names, weigh=True)
    assert all(torch.equal(beside.maps[grid], plain.maps[grid]) for grid in plain.maps)
    (weighted,) = kept
    weights = weighted.weights()
    torch.testing.assert_close(torch.stack([*weights.values()]).sum(dim=0), torch.ones(2))
    for layer in cross:
        torch.testing.assert_close(
            weighted.cross_maps[layer.name].sum(dim=2), torch.ones(2, maps_size(weighted, layer.name))
        )
    means = torch.stack([m.sum(dim=1).mean(dim=1) for m in maps.maps.values()]).mean(dim=0)
    torch.testing.assert_close(means, torch.ones(2))
    _, prompt = recorder.attention(**inputs, columns=torch.tensor([[0, 3], [1, 1]]), weigh=True)
    assert {grid: m.shape[1] for grid, m in prompt.maps.items()} == dict.fromkeys(maps.maps, 2)
    assert all(((m >= 0) & torch.isfinite(m)).all() for m in prompt.maps.values())


def maps_size(weighted: WeightedMaps, layer: str) -> int:
    height, width = weighted.grid_of[layer]
    return height * width
