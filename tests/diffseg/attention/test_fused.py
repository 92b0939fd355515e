"""The fused backend beside the blockwise one, on a CPU with Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from small_models import small_unet, unet_inputs

pytest.importorskip("triton", reason="needs Triton, which comes with the extra test on Linux and x86-64")

from label_agreement import agreement_of

from diffseg import Segmenter
from diffseg.attention import backends, fused, head_mean_kernel
from diffseg.attention.backends import choose_backend
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.fused import FusedAttention
from diffseg.attention.maps import Grid
from diffseg.attention.recorder import AttentionRecorder
from diffseg.tiny.scenes.scenes import generate_scene

CPU, FLOAT32 = torch.device("cpu"), torch.float32
COLUMNS = torch.tensor([[1, 4, 6], [0, 4, 4]])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets only without a GPU")


@needs_interpreter
@pytest.mark.parametrize(("layout", "grid"), [("sd1", (8, 16)), ("sd2", (8, 8)), ("sdxl", (16, 8))])
def test_both_backends_record_the_same_maps_and_leave_the_output_unchanged(layout: str, grid: Grid) -> None:
    unet, inputs = small_unet(layout), unet_inputs(layout, 2, grid)
    with torch.no_grad():
        expected = unet(**inputs).sample
    blockwise, with_kernel = (
        AttentionRecorder(unet, backend) for backend in (BlockwiseAttention(), FusedAttention(CPU, FLOAT32))
    )
    _, output = with_kernel.with_output(**_arguments(inputs), record_cross=True)
    assert (output - expected).abs().max() <= 1e-5
    recorded, reference = (
        recorder.attention(**_arguments(inputs), columns=COLUMNS) for recorder in (with_kernel, blockwise)
    )
    for maps, other in zip(recorded, reference, strict=True):
        assert list(maps.maps) == list(other.maps)
        assert maps.layers == other.layers
        for size in maps.maps:
            torch.testing.assert_close(maps.maps[size], other.maps[size], rtol=1e-4, atol=1e-6)


def _arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a UNet under the names that a recorder gives them."""
    return {"latents" if name == "sample" else name: value for name, value in inputs.items()}


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_layer_in_half_precision_has_the_maps_and_the_output_of_the_blockwise_backend(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter multiplies bfloat16 wrongly, so the kernel gets the same values as float32."""
    kernel = head_mean_kernel.add_head_mean
    monkeypatch.setattr(fused, "add_head_mean", lambda q, k, *rest: kernel(q.float(), k.float(), *rest))
    queries, keys, values = (torch.randn(2, 24, 3, 40, dtype=dtype).transpose(1, 2) for _ in range(3))
    maps, outputs = {}, {}
    for backend in (FusedAttention(CPU, dtype), BlockwiseAttention()):
        total = torch.zeros(2, 24, 24)
        output = backend.self_attention(queries, keys, values, 0.2, total)
        assert output is not None
        maps[backend.name], outputs[backend.name] = total, output.float()
    torch.testing.assert_close(maps["fused"], maps["blockwise"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(outputs["fused"], outputs["blockwise"], rtol=0.02, atol=0.01)


@needs_interpreter
def test_a_small_layer_is_checked_before_the_backend_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FusedAttention(CPU, FLOAT32)
    backend.check(heads=3, width=5)
    monkeypatch.setattr(fused, "add_head_mean", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"maps of 3 heads of 5 channels in torch.float32 do not sum to 1"):
        backend.check(heads=3, width=5)


class _OnGpu:
    """A UNet that claims to be on a GPU."""

    def __init__(self, unet: Any) -> None:
        self.device, self.dtype = torch.device("cuda"), unet.dtype
        self.down_blocks, self.mid_block, self.up_blocks = unet.down_blocks, unet.mid_block, unet.up_blocks


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_gpu_gets_the_fused_backend_if_it_works_there(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(FusedAttention, "check", lambda self, heads, width: checked.append((heads, width)))
    unet: Any = _OnGpu(small_unet("sd2"))
    chosen = choose_backend(unet)
    if capability < backends.FIRST_CAPABILITY:
        assert (chosen.name, checked) == ("blockwise", [])
        return
    assert chosen.name == "fused"
    assert checked == [(2, 16), (4, 16), (8, 8)]

    def fail(self: FusedAttention, heads: int, width: int) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(FusedAttention, "check", fail)
    with caplog.at_level(logging.WARNING):
        assert choose_backend(unet).name == "blockwise"
    assert "Failed to find C compiler" in caplog.text


def test_a_cpu_gets_the_blockwise_backend() -> None:
    assert choose_backend(small_unet("sd1")).name == "blockwise"
    assert Segmenter.from_pretrained("tiny").backbone.recorder.backend.name == "blockwise"


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("grid", [(64, 64), (64, 96), (96, 96), (128, 128)], ids=str)
def test_a_gpu_records_large_grids_exactly_and_without_the_probabilities_of_all_heads(
    grid: Grid, dtype: torch.dtype
) -> None:
    tokens, device = grid[0] * grid[1], torch.device("cuda")
    queries, keys, values = (torch.randn(2, tokens, 8, 40, device=device).to(dtype).transpose(1, 2) for _ in range(3))
    backend, total = FusedAttention(device, dtype), torch.zeros(2, tokens, tokens, device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = backend.self_attention(queries, keys, values, 40**-0.5, total)
    assert torch.cuda.max_memory_allocated() - before < 4 * queries.nbytes
    torch.testing.assert_close(total.sum(dim=-1), torch.ones(2, tokens, device=device), rtol=0, atol=1e-4)
    rows = torch.randperm(tokens, device=device)[:64]
    probabilities = (queries[:, :, rows].double() @ keys.double().transpose(2, 3) * 40**-0.5).softmax(dim=-1)
    torch.testing.assert_close(total[:, rows].double(), probabilities.mean(dim=1), rtol=1e-3, atol=1e-8)
    assert output is not None
    exact = probabilities @ values.double()
    torch.testing.assert_close(output[:, :, rows].double(), exact, rtol=0, atol=1e-5 if dtype == FLOAT32 else 1e-2)


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("model", "names"), [("tiny", None), ("tiny-text", ["dog", "sky", "car"])])
def test_a_gpu_gives_the_same_labels_with_both_backends(model: str, names: list[str] | None, dtype: Any) -> None:
    images = [generate_scene(seed, 200).image for seed in range(8)]
    segmenter = Segmenter.from_pretrained(model, device="cuda", dtype=dtype, batch_size=4, naming=names is not None)
    assert segmenter.backbone.recorder.backend.name == "fused"
    recorded = segmenter(images, names=names)
    segmenter.backbone.recorder = AttentionRecorder(segmenter.backbone.checkpoint.unet, BlockwiseAttention())
    expected = segmenter(images, names=names)
    agreement = agreement_of(recorded, expected)
    if dtype == "bfloat16":  # its rounding alone changes more pixels, and the backends round at different places
        exact = Segmenter.from_pretrained(model, device="cuda", batch_size=4, naming=names is not None)
        assert agreement >= min(0.995, agreement_of(expected, exact(images, names=names)) - 0.01)
    else:
        assert agreement >= 0.995
