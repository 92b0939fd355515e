"""A batch never waits for the device: on the meta device, whose tensors have shapes but no values, it would fail."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted, voronoi

from diffseg import Segmenter
from diffseg.devices import keep_freed_memory
from diffseg.method import par as refinement
from diffseg.method.decide import decide
from diffseg.method.merge import Consume, anchor_positions, greedy_groups, merge
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.settings import settings_of
from diffseg.tiny.scenes.scenes import generate_scene


@pytest.mark.parametrize(
    "options", [{}, {"method": ("diffseg", "par"), "flip": True, "crops": 2, "min_area": 0.01}], ids=["default", "all"]
)
def test_a_batch_reads_no_value_from_the_device(
    options: dict[str, Any], checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "ITERATIONS", 1)  # an iteration costs as much as for a real image
    checkpoint = load_checkpoint(checkpoints["sd1"], device="meta")
    settings = settings_of(tau=(0.1, 0.1, 0.1), **options)
    segmenter = Segmenter(Backbone(checkpoint), settings, batch_size=3)
    images = [np.zeros((size, 70, 3), dtype=np.uint8) for size in (50, 90)]
    batch = segmenter.launch([segmenter.prepare(image) for image in images])
    assert [tuple(decision.labels.shape) for decision in batch.decisions] == [(50, 70), (90, 70)]
    tensors = [t for d in batch.decisions for t in (d.labels, d.stats, d.margins) if t is not None]
    assert len(tensors) == (6 if options else 4)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises((NotImplementedError, RuntimeError)):
        batch.results()


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_merging_a_batch_agrees_with_merging_each_image_alone(consume: Consume) -> None:
    rows = np.stack([planted(voronoi(16, k, k), leak=0.1, noise=0.5, seed=k) for k in (3, 7, 5)])
    attention = torch.from_numpy(rows).float()
    anchors = anchor_positions((16, 16), 8)
    together, valid = merge(attention, anchors=anchors, tau=(0.8,) * 3, consume=consume)
    assert together.shape == (3, 64, 256)
    assert len({int(row.sum()) for row in valid}) > 1, "images with equal numbers of proposals would hide a mix-up"
    for index in range(3):
        alone, all_valid = merge(attention[index : index + 1], anchors=anchors, tau=(0.8,) * 3, consume=consume)
        assert all_valid.all()
        torch.testing.assert_close(together[index, valid[index]], alone[0])
        assert not together[index, ~valid[index]].any()
        padded, compact = (decide(p.view(-1, 16, 16), (64, 48)) for p in (together[index], alone[0]))
        assert np.array_equal(padded.labels, compact.labels)
        assert [s.area for s in padded.segments] == [s.area for s in compact.segments]


def test_greedy_grouping_skips_consumed_proposals() -> None:
    close = torch.ones(1, 3, 3, dtype=torch.bool)
    groups, starts = greedy_groups(close, torch.tensor([[False, True, True]]), "paper")
    assert starts.tolist() == [[False, True, False]]
    assert groups[0, 1].tolist() == [False, True, True]
    assert not groups[0, [0, 2]].any()


def test_only_products_of_half_precision_models_may_use_tf32(checkpoints: dict[str, Path]) -> None:
    allowed: list[bool] = []
    for dtype in (torch.bfloat16, torch.float32):
        backbone = Backbone(load_checkpoint(checkpoints["sd1"], dtype=dtype))
        backbone.checkpoint.unet.conv_in.register_forward_hook(
            lambda *_: allowed.append(torch.backends.cuda.matmul.allow_tf32)
        )
        backbone.self_attention(torch.zeros(1, 3, 64, 64), 300)
    assert allowed == [True, False]
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_gpu_and_a_cpu_agree_on_labels(batch_size: int) -> None:
    images = [generate_scene(seed, 200).image for seed in range(4)]
    expected = Segmenter.from_pretrained("tiny")(images)
    on_gpu = Segmenter.from_pretrained("tiny", device="cuda", batch_size=batch_size)(images)
    for cpu, gpu in zip(expected, on_gpu, strict=True):
        assert (cpu.labels == gpu.labels).mean() > 0.99
        assert gpu.confidence == pytest.approx(cpu.confidence, abs=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has this setting")
def test_freed_memory_stays_with_the_process() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    libc: Any = ctypes.CDLL(None)
    try:
        keep_freed_memory()
        before = resident()
        big = torch.ones(2**24)
        del big
        assert resident() - before > 2**25, "64 MiB were returned to the kernel"
    finally:
        libc.mallopt(-3, 2**25)
        libc.mallopt(-1, 2**26)
