"""A second context is recorded beside a pass: its maps are right, and the pass does not notice it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_models import UNETS, small_unet, small_vae, unet_inputs
from torch._dynamo.testing import CompileCounterWithBackend

from diffseg.attention import blockwise
from diffseg.attention.backends import AttentionBackend
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import attention_layers
from diffseg.attention.name_context import NameContext
from diffseg.attention.recorder import AttentionRecorder
from diffseg.model.compilation import compile_model


def name_context(unet: UNet2DConditionModel, layout: str, lengths: tuple[int, ...], names: int = 4) -> NameContext:
    """Return keys of random tokens, of which each image has the first ones, and random weights of names."""
    tokens = torch.randn(len(lengths), max(lengths), UNETS[layout]["cross_attention_dim"])
    layers = [layer for layer in attention_layers(unet) if layer.module.is_cross_attention]
    is_padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    weights = torch.rand(len(lengths), names, max(lengths)).masked_fill(is_padding[:, None], 0)
    with torch.no_grad():
        keys = {layer.name: layer.module.to_k(tokens) for layer in layers}
    return NameContext(keys=keys, weights=weights, is_padding=is_padding if is_padding.any() else None)


def arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a UNet under the names that a recorder gives them."""
    return {"latents" if name == "sample" else name: value for name, value in inputs.items()}


def backend(name: str) -> AttentionBackend:
    if name == "blockwise":
        return BlockwiseAttention()
    pytest.importorskip("triton", reason="needs Triton, which comes with the extra test on Linux and x86-64")
    from diffseg.attention.fused import FusedAttention

    if torch.cuda.is_available():
        pytest.skip("Triton interprets only without a GPU")
    return FusedAttention(torch.device("cpu"), torch.float32)


def maps_by_hooks(
    unet: UNet2DConditionModel, inputs: dict[str, Any], context: NameContext, lengths: tuple[int, ...]
) -> dict[int, torch.Tensor]:
    """Return {positions: float64 [B, T, P]}, computed image by image without padding."""
    layer_maps: dict[int, list[torch.Tensor]] = {}
    names = {layer.module: layer.name for layer in attention_layers(unet) if layer.module.is_cross_attention}

    def hook(layer: Any, positional: tuple[Any, ...], options: dict[str, Any]) -> None:
        queries = layer.to_q(positional[0]).unflatten(-1, (layer.heads, -1)).transpose(1, 2).double()
        maps = []
        for image, length in enumerate(lengths):
            keys = context.keys[names[layer]][image, :length].unflatten(-1, (layer.heads, -1)).transpose(0, 1).double()
            probabilities = torch.softmax(queries[image] @ keys.transpose(1, 2) * layer.scale, dim=-1).mean(dim=0)
            maps.append(context.weights[image, :, :length].double() @ probabilities.T)
        layer_maps.setdefault(queries.shape[2], []).append(torch.stack(maps))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in names]
    with torch.no_grad():
        unet(**inputs)
    for handle in handles:
        handle.remove()
    return {positions: torch.stack(maps).mean(dim=0) for positions, maps in layer_maps.items()}


@pytest.mark.parametrize(
    ("name", "layout", "lengths"),
    [("blockwise", "sd1", (9, 9)), ("blockwise", "sdxl", (9, 5)), ("fused", "sd2", (9, 5))],
)
def test_maps_of_names_are_right_and_self_attention_is_that_of_a_pass_without_names(
    name: str, layout: str, lengths: tuple[int, ...]
) -> None:
    unet, inputs = small_unet(layout), unet_inputs(layout, 2, (8, 8))
    recorder = AttentionRecorder(unet, backend(name))
    context = name_context(unet, layout, lengths)
    plain = recorder.self_attention(**arguments(inputs))
    beside, cross = recorder.attention_beside(**arguments(inputs), names=context)
    for grid, maps in plain.maps.items():
        assert torch.equal(beside.maps[grid], maps)
    assert cross.layers == beside.layers
    expected = maps_by_hooks(unet, inputs, context, lengths)
    for (height, width), maps in cross.maps.items():
        torch.testing.assert_close(maps.double(), expected[height * width], rtol=1e-4, atol=1e-6)


def test_a_vocabulary_in_blocks_has_the_maps_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = torch.randn(2, 3, 64, 8), torch.randn(2, 3, 1200, 8)
    totals = []
    for elements in (2**20, 5000):  # all queries of a head at once, and four queries
        monkeypatch.setattr(blockwise, "WORKSPACE_ELEMENTS", elements)
        total = torch.zeros(2, 64, 1200)
        BlockwiseAttention().record(queries, keys, 0.3, total)
        totals.append(total)
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(totals[1].sum(dim=-1), torch.ones(2, 64))


@pytest.mark.parametrize(("name", "compiler"), [("blockwise", "eager"), ("fused", "aot_eager")])
def test_a_compiled_model_records_the_same_maps_for_vocabularies_of_any_size(name: str, compiler: str) -> None:
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = small_unet("sd1", block_out_channels=(16,), attention_head_dim=1, layers_per_block=1, **kinds)
    recorder = AttentionRecorder(unet, backend(name))
    passes = [(arguments(unet_inputs("sd1", 2, (4, 4))), name_context(unet, "sd1", (n, n - 1))) for n in (5, 9, 12)]
    expected = [recorder.attention_beside(**inputs, names=context)[1] for inputs, context in passes]
    counter: Any = CompileCounterWithBackend(compiler)
    torch._dynamo.reset()
    try:
        compile_model(small_vae(), unet, backend=counter)
        graphs = []
        for (inputs, context), reference in zip(passes, expected, strict=True):
            _, cross = recorder.attention_beside(**inputs, names=context)
            graphs.append(counter.frame_count)
            for grid, maps in reference.maps.items():
                torch.testing.assert_close(cross.maps[grid], maps, rtol=1e-4, atol=1e-6)
    finally:
        torch._dynamo.reset()
    assert graphs[-1] == graphs[1], "after the second size no other size is compiled"
    operators = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    operator = {"blockwise": "record_in_blocks", "fused": "add_head_mean"}[name]
    assert any(f"diffseg.{operator}" in target for target in operators)
