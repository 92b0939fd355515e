"""Cross-attention to the chosen tokens is recorded together with self-attention, and changes no output."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_models import small_unet, unet_inputs

from diffseg.attention.aggregate import average_cross_attention
from diffseg.attention.layers import attention_layers
from diffseg.attention.maps import CrossAttention
from diffseg.attention.recorder import AttentionRecorder

COLUMNS = torch.tensor([[1, 4, 6], [0, 4, 4]])


def maps_by_hooks(unet: UNet2DConditionModel, inputs: dict) -> dict[int, torch.Tensor]:
    """Return {positions: float64 [B, P, L]}, computed from the layers' inputs, averaged over heads and layers."""
    layer_maps: dict[int, list[torch.Tensor]] = {}

    def hook(layer: torch.nn.Module, arguments: tuple, options: dict) -> None:
        states, text = arguments[0], options["encoder_hidden_states"]
        queries, keys = (
            project(value).unflatten(-1, (layer.heads, -1)).transpose(1, 2).double()
            for project, value in ((layer.to_q, states), (layer.to_k, text))
        )
        maps = torch.softmax(queries @ keys.transpose(2, 3) * layer.scale, dim=-1).mean(dim=1)
        layer_maps.setdefault(maps.shape[1], []).append(maps)

    layers = [layer.module for layer in attention_layers(unet) if layer.module.is_cross_attention]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        unet(**inputs)
    for handle in handles:
        handle.remove()
    return {positions: torch.stack(maps).mean(dim=0) for positions, maps in layer_maps.items()}


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_maps_agree_with_the_layers_and_the_output_is_unchanged(layout: str) -> None:
    unet = small_unet(layout)
    inputs = unet_inputs(layout, 2)
    with torch.no_grad():
        expected = unet(**inputs).sample
    latents, options = inputs.pop("sample"), inputs
    recorder = AttentionRecorder(unet)
    _, output = recorder.with_output(latents, record_cross=True, **options)
    assert (output - expected).abs().max() <= 1e-5

    self_attention, cross = recorder.attention(latents, columns=COLUMNS, **options)
    alone = recorder.self_attention(latents, **options)
    for grid, maps in alone.maps.items():
        torch.testing.assert_close(self_attention.maps[grid], maps, rtol=1e-3, atol=1e-6)
    layers = maps_by_hooks(unet, {"sample": latents, **options})
    assert cross.layers == self_attention.layers
    for (height, width), maps in cross.maps.items():
        assert maps.shape == (2, 3, height * width)
        for image, columns in enumerate(COLUMNS):
            expected = layers[height * width][image][:, columns].T
            torch.testing.assert_close(maps[image].double(), expected, rtol=1e-4, atol=1e-7)


def test_the_pass_ends_after_the_last_map_and_restores_the_processors() -> None:
    unet = small_unet("sd1")
    before = dict(unet.attn_processors)
    inputs = unet_inputs("sd1")
    ran: list[str] = []
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    AttentionRecorder(unet).attention(inputs.pop("sample"), columns=COLUMNS[:1], **inputs)
    last = "up_blocks.3.attentions.2.transformer_blocks.0"
    assert f"{last}.attn2.to_k" in ran
    assert f"{last}.ff" not in ran
    assert unet.attn_processors == before


def test_maps_of_names_are_weighted_sums_of_their_tokens() -> None:
    tokens = CrossAttention(maps={(1, 2): torch.tensor([[[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]]])}, layers={(1, 2): 3})
    weights = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]])
    torch.testing.assert_close(tokens.combine_tokens(weights).maps[1, 2], torch.tensor([[[0.4, 0.3], [0.1, 0.1]]]))


def test_the_coarsest_maps_count_only_if_asked_for_as_in_the_code_of_diffseg() -> None:
    maps = {(4, 4): torch.ones(1, 1, 16), (2, 2): torch.full((1, 1, 4), 2.0), (1, 1): torch.full((1, 1, 1), 8.0)}
    cross = CrossAttention(maps=maps, layers={(4, 4): 5, (2, 2): 5, (1, 1): 1})
    ours, grid = average_cross_attention(cross, include_coarsest=False)
    assert grid == (4, 4)
    torch.testing.assert_close(ours, torch.full((1, 1, 4, 4), 1.5))
    google, _ = average_cross_attention(cross, include_coarsest=True)
    torch.testing.assert_close(google, torch.full((1, 1, 4, 4), 11 / 3))
    only = CrossAttention(maps={(1, 1): maps[1, 1]}, layers={(1, 1): 1})
    assert average_cross_attention(only, include_coarsest=False)[0].item() == 8


def test_mirrored_maps_are_mirrored_back() -> None:
    maps = torch.arange(6.0).view(1, 1, 6)
    cross = CrossAttention(maps={(2, 3): maps.clone()}, layers={(2, 3): 1})
    cross.average_with_mirrored(
        CrossAttention(maps={(2, 3): maps.view(1, 1, 2, 3).flip(-1).flatten(-2)}, layers={(2, 3): 1})
    )
    torch.testing.assert_close(cross.maps[2, 3], maps)
