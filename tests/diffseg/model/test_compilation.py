"""A compiled model: one graph for each transformer block, and the same maps and labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from label_agreement import agreement_of
from small_models import small_unet, small_vae, unet_inputs
from torch._dynamo.testing import CompileCounterWithBackend

from diffseg import Segmenter
from diffseg.affinity.state import AffinityState
from diffseg.attention.backends import AttentionBackend
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import transformer_blocks
from diffseg.attention.recorder import AttentionRecorder
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.compilation import compile_model
from diffseg.private_folder import private_folder, use_private_torch_cache
from diffseg.settings import settings_of
from diffseg.tiny.scenes.scenes import generate_scene

COLUMNS = torch.tensor([[1, 4], [0, 4]])


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def backend(name: str) -> AttentionBackend:
    if name == "blockwise":
        return BlockwiseAttention()
    pytest.importorskip("triton", reason="needs Triton, which comes with the extra test on Linux and x86-64")
    from diffseg.attention.fused import FusedAttention

    if torch.cuda.is_available():
        pytest.skip("Triton interprets only without a GPU")
    return FusedAttention(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("name", "compiler"), [("blockwise", "eager"), ("fused", "aot_eager")])
def test_blocks_are_whole_graphs_that_record_the_same_maps_in_every_pass(name: str, compiler: str) -> None:
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    unet = small_unet("sd1", block_out_channels=(16, 32), attention_head_dim=2, layers_per_block=1, **kinds)
    recorder = AttentionRecorder(unet, backend(name))
    passes = []
    for _ in range(3):
        inputs = unet_inputs("sd1", 2, (4, 8))
        passes.append((inputs["sample"], 300, inputs["encoder_hidden_states"]))
    expected = [recorder.attention(*arguments, columns=COLUMNS) for arguments in passes]

    counter = CompileCounterWithBackend(compiler)
    compile_model(small_vae(), unet, backend=counter)
    graphs = []
    for arguments, reference in zip(passes, expected, strict=True):
        recorded = recorder.attention(*arguments, columns=COLUMNS)
        graphs.append(counter.frame_count)
        for maps, others in zip(recorded, reference, strict=True):
            for grid in others.maps:
                torch.testing.assert_close(maps.maps[grid], others.maps[grid], rtol=1e-4, atol=1e-6)
    assert len(transformer_blocks(unet)) == 7
    assert 2 <= graphs[0] <= 4, "blocks of one width share graphs"
    assert graphs == [graphs[0]] * 3, "the second and the third pass compile nothing"
    operators = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    operator = {"blockwise": "attend_in_blocks", "fused": "add_head_mean"}[name]
    assert any(f"diffseg.{operator}" in target for target in operators)


def test_a_compiled_segmenter_gives_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = [generate_scene(seed, 96).image for seed in range(2)]
    expected = Segmenter.from_pretrained("tiny", batch_size=2, resolution=64)(images)
    compiled: list[str] = []

    def compile_without_compiler(vae: Any, unet: Any) -> None:
        compiled.append(type(unet).__name__)
        compile_model(vae, unet, backend="eager")

    monkeypatch.setattr("diffseg.model.backbone.compile_model", compile_without_compiler)
    labelled = Segmenter.from_pretrained("tiny", batch_size=2, resolution=64, compile=True)(images)
    assert compiled == ["UNet2DConditionModel"]
    for ours, reference in zip(labelled, expected, strict=True):
        assert (ours.labels == reference.labels).mean() >= 0.995


def test_all_processes_of_a_user_share_the_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    use_private_torch_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    use_private_torch_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == os.path.join(private_folder(), "torchinductor")


def test_a_learned_affinity_cannot_be_read_in_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.model.backbone.compile_model", lambda vae, unet: None)
    monkeypatch.setattr("diffseg.compatibility.check_state", lambda *_: None)
    state: Any = object.__new__(AffinityState)
    backbone = Backbone(load_checkpoint("tiny"), compile=True)
    with pytest.raises(ValueError, match="compile and affinity exclude each other"):
        Segmenter(backbone, settings_of(), affinity=state)


def test_weights_of_layers_cannot_be_computed_in_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.model.backbone.compile_model", lambda vae, unet: None)
    backbone = Backbone(load_checkpoint("tiny-text", text=True), compile=True)
    with pytest.raises(ValueError, match="compile and vote=goca exclude each other"):
        Segmenter(backbone, settings_of(vote="goca"), naming=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_the_same_labels_compiled(dtype: Any) -> None:
    images: list[Any] = [generate_scene(seed, 200).image for seed in range(8)]
    options: dict[str, Any] = {"device": "cuda", "dtype": dtype, "batch_size": 4}
    expected = Segmenter.from_pretrained("tiny", **options)(images)
    labelled = Segmenter.from_pretrained("tiny", **options, compile=True)(images)
    agreement = agreement_of(labelled, expected)
    if dtype == "bfloat16":  # its rounding alone changes more pixels, and compiled code rounds at other places
        exact = Segmenter.from_pretrained("tiny", device="cuda", batch_size=4)(images)
        assert agreement >= min(0.995, agreement_of(expected, exact) - 0.01)
    else:
        assert agreement >= 0.995
