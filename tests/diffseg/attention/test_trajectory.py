"""The attention of a trajectory is the mean of its passes, and recording it changes no output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import UNETS, small_unet, unet_inputs

from diffseg.attention.layers import attention_layers
from diffseg.attention.name_context import NameContext
from diffseg.attention.recorder import AttentionRecorder
from diffseg.attention.trajectory import Trajectory


def passes(layout: str, count: int) -> list[dict[str, Any]]:
    inputs = [unet_inputs(layout, 2, (8, 8)) for _ in range(count)]
    return [
        {"latents" if k == "sample" else "context" if k == "encoder_hidden_states" else k: v for k, v in one.items()}
        | {"timestep": 900 - 100 * number}
        for number, one in enumerate(inputs)
    ]


def contexts_of(unet: Any, layout: str) -> list[NameContext]:
    """Return random names for two images, of which the second has fewer names and tokens."""
    layers = [layer for layer in attention_layers(unet) if layer.module.is_cross_attention]
    contexts = []
    for names, count in ((3, 5), (2, 4)):
        tokens = torch.randn(1, count, UNETS[layout]["cross_attention_dim"])
        with torch.no_grad():
            keys = {layer.name: layer.module.to_k(tokens) for layer in layers}
        contexts.append(NameContext(keys=keys, weights=torch.rand(1, names, count)))
    return contexts


def stored_maps(unet: Any, inputs: dict[str, Any], contexts: list[NameContext], image: int) -> dict[int, torch.Tensor]:
    """Return {positions: float64 [T, P]} of an image, the mean over heads and layers of one pass, from stored maps."""
    maps: dict[int, list[torch.Tensor]] = {}
    layers = {layer.module: layer.name for layer in attention_layers(unet) if layer.module.is_cross_attention}

    def hook(layer: Any, positional: tuple[Any, ...], _: dict[str, Any]) -> None:
        queries, keys = (
            x.unflatten(-1, (layer.heads, -1)).transpose(1, 2).double()
            for x in (layer.to_q(positional[0])[image : image + 1], contexts[image].keys[layers[layer]])
        )
        probabilities = torch.softmax(queries @ keys.transpose(2, 3) * layer.scale, dim=-1)[0].mean(dim=0)
        maps.setdefault(queries.shape[2], []).append(contexts[image].weights[0].double() @ probabilities.T)

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    arguments = dict(inputs)
    with torch.no_grad():
        unet(arguments.pop("latents"), arguments.pop("timestep"), arguments.pop("context"), **arguments)
    for handle in handles:
        handle.remove()
    return {positions: torch.stack(of_layers).mean(dim=0) for positions, of_layers in maps.items()}


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_maps_of_names_are_the_mean_of_the_stored_maps_of_the_recorded_passes(layout: str) -> None:
    unet, steps = small_unet(layout), passes(layout, 3)
    contexts = contexts_of(unet, layout)
    trajectory = Trajectory(AttentionRecorder(unet), steps[0]["latents"], contexts)
    for number, inputs in enumerate(steps):
        trajectory.run(**inputs, record_cross=number != 1)
    found = trajectory.cross_attention()
    for image, names in enumerate((3, 2)):
        stored = [stored_maps(unet, steps[number], contexts, image) for number in (0, 2)]
        for (height, width), maps in found.maps.items():
            expected = torch.stack([of_pass[height * width] for of_pass in stored]).mean(dim=0)
            torch.testing.assert_close(maps[image, :names].double(), expected, rtol=1e-4, atol=1e-7)
            assert not maps[image, names:].any()


def test_outputs_are_those_of_passes_that_are_not_recorded_bit_for_bit() -> None:
    unet, (first, second) = small_unet("sd2"), passes("sd2", 2)
    trajectory = Trajectory(AttentionRecorder(unet), first["latents"], contexts_of(unet, "sd2"))
    outputs = [
        trajectory.run(**first, record_cross=True),
        trajectory.run_with_self_attention(**second, record_cross=True)[0],
    ]
    for inputs, output in zip((first, second), outputs, strict=True):
        with torch.no_grad():
            assert torch.equal(output, unet(inputs["latents"], inputs["timestep"], inputs["context"]).sample)


def test_self_attention_is_that_of_a_recorded_pass() -> None:
    unet, (inputs,) = small_unet("sd1"), passes("sd1", 1)
    recorder = AttentionRecorder(unet)
    trajectory = Trajectory(recorder, inputs["latents"])
    _, found = trajectory.run_with_self_attention(**inputs, record_cross=False)
    expected = recorder.self_attention(inputs["latents"], inputs["timestep"], inputs["context"])
    assert found.layers == expected.layers
    for grid, maps in expected.maps.items():
        torch.testing.assert_close(found.maps[grid], maps)


def test_maps_of_no_pass_are_refused() -> None:
    unet, (inputs,) = small_unet("sd1"), passes("sd1", 1)
    trajectory = Trajectory(AttentionRecorder(unet), inputs["latents"], contexts_of(unet, "sd1"))
    trajectory.run(**inputs, record_cross=False)
    with pytest.raises(ValueError, match="no pass recorded"):
        trajectory.cross_attention()
