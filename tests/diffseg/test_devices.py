"""What a GPU would see: no value is asked for inside a batch. The meta device has shapes but no values to give."""

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
def test_a_batch_asks_the_device_for_nothing(
    options: dict[str, Any], checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "ITERATIONS", 1)  # on this device a step costs as much as on an image
    checkpoint = load_checkpoint(checkpoints["sd1"], device="meta")
    settings = settings_of(tau=(0.1, 0.1, 0.1), **options)
    segmenter = Segmenter(Backbone(checkpoint), settings, batch_size=3)
    images = [np.zeros((size, 70, 3), dtype=np.uint8) for size in (50, 90)]
    launched = segmenter.launch([segmenter.prepare(image) for image in images])
    assert [tuple(decision.labels.shape) for decision in launched.decisions] == [(50, 70), (90, 70)]
    parts = [part for d in launched.decisions for part in (d.labels, d.figures, d.margins) if part is not None]
    assert len(parts) == (6 if options else 4)
    assert {part.device.type for part in parts} == {"meta"}
    with pytest.raises((NotImplementedError, RuntimeError)):
        launched.results()


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_images_merged_together_are_merged_as_alone(consume: Consume) -> None:
    rows = np.stack([planted(voronoi(16, k, k), leak=0.1, noise=0.5, seed=k) for k in (3, 7, 5)])
    attention = torch.from_numpy(rows).float()
    anchors = anchor_positions((16, 16), 8)
    together, alive = merge(attention, anchors=anchors, tau=(0.8,) * 3, consume=consume)
    assert together.shape == (3, 64, 256)
    assert len({int(row.sum()) for row in alive}) > 1, "images with as many proposals each would hide a mix-up"
    for index in range(3):
        alone, all_of_them = merge(attention[index : index + 1], anchors=anchors, tau=(0.8,) * 3, consume=consume)
        assert all_of_them.all()
        torch.testing.assert_close(together[index, alive[index]], alone[0])
        assert not together[index, ~alive[index]].any()
        padded, compact = (decide(p.view(-1, 16, 16), (64, 48)) for p in (together[index], alone[0]))
        assert np.array_equal(padded.labels, compact.labels)
        assert [s.area for s in padded.segments] == [s.area for s in compact.segments]


def test_a_walk_over_proposals_that_are_gone_passes_them_by() -> None:
    close = torch.ones(1, 3, 3, dtype=torch.bool)
    groups, starts = greedy_groups(close, torch.tensor([[False, True, True]]), "paper")
    assert starts.tolist() == [[False, True, False]]
    assert groups[0, 1].tolist() == [False, True, True]
    assert not groups[0, [0, 2]].any()


def test_products_of_halves_may_use_tensor_cores_and_others_may_not(checkpoints: dict[str, Path]) -> None:
    seen: list[bool] = []
    for dtype in (torch.bfloat16, torch.float32):
        backbone = Backbone(load_checkpoint(checkpoints["sd1"], dtype=dtype))
        backbone.checkpoint.unet.conv_in.register_forward_hook(
            lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32)
        )
        backbone.self_attention(torch.zeros(1, 3, 64, 64), 300)
    assert seen == [True, False]
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_gpu_gives_the_labels_of_a_cpu(batch_size: int) -> None:
    images = [generate_scene(seed, 200).image for seed in range(4)]
    expected = Segmenter.from_pretrained("tiny")(images)
    found = Segmenter.from_pretrained("tiny", device="cuda", batch_size=batch_size)(images)
    for one, other in zip(expected, found, strict=True):
        assert (one.labels == other.labels).mean() > 0.99
        assert other.confidence == pytest.approx(one.confidence, abs=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of Linux's C library")
def test_freed_memory_stays_with_the_process() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    libc: Any = ctypes.CDLL(None)
    try:
        keep_freed_memory()
        before = resident()
        big = torch.ones(2**24)
        del big
        assert resident() - before > 2**25, "64 MiB went back to the kernel"
    finally:
        libc.mallopt(-3, 2**25)
        libc.mallopt(-1, 2**26)
