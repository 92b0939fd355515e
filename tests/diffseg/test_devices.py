"""Batches on devices other than a CPU: they wait at most once, and give the labels of a CPU.

On the meta device tensors have shapes but no values, so that every wait that a test does not answer fails.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted, voronoi

from diffseg import Segmentation, Segmenter, devices
from diffseg.devices import UNPINNED_BYTES, HostCopy, Once, fastest_memory_format, keep_freed_memory, to_device
from diffseg.method import merge as merging
from diffseg.method import par as refinement
from diffseg.method.decide import decide
from diffseg.method.grouping import greedy_groups
from diffseg.method.kernels import runs_kernels
from diffseg.method.merge import Consume, anchor_positions, merge
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.settings import settings_of
from diffseg.tiny.scenes.scenes import generate_scene


def watch_waits(monkeypatch: pytest.MonkeyPatch, *answers: list[int]) -> list[int]:
    """Answer the waits of merging in turn, and return a list that grows by the number of values that each one reads."""
    waits: list[int] = []
    in_turn = iter(answers)

    def answer(numbers: torch.Tensor) -> list[int]:
        waits.append(numbers.numel())
        return next(in_turn)

    monkeypatch.setattr(merging, "wait_for_numbers", answer)
    return waits


@pytest.mark.parametrize(
    "options", [{}, {"method": ("diffseg", "par"), "flip": True, "crops": 2, "min_area": 0.01}], ids=["default", "all"]
)
def test_a_batch_waits_for_the_device_once_and_then_works_on_live_proposals(
    options: dict[str, Any], checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "ITERATIONS", 1)  # an iteration costs as much as for a real image
    waits = watch_waits(monkeypatch, [2, 5, 3])
    checkpoint = load_checkpoint(checkpoints["sd1"], device="meta")
    settings = settings_of(tau=(0.1, 0.1, 0.1), **options)
    segmenter = Segmenter(Backbone(checkpoint), settings, batch_size=3)
    images = [np.zeros((size, 70, 3), dtype=np.uint8) for size in (50, 90)]
    batch = segmenter.launch([segmenter.prepare(image) for image in images])
    assert waits == [3], "one wait, for one number of each image of the batch"
    assert [tuple(decision.labels.shape) for decision in batch.decisions] == [(50, 70), (90, 70)]
    assert [tuple(decision.stats.shape) for decision in batch.decisions] == [(6, 5), (6, 5)]
    tensors = [t for d in batch.decisions for t in (d.labels, d.stats, d.margins) if t is not None]
    assert len(tensors) == (6 if options else 4)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises((NotImplementedError, RuntimeError)):
        batch.results()


def test_a_batch_whose_number_of_proposals_is_known_waits_for_nothing(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = watch_waits(monkeypatch)
    checkpoint = load_checkpoint(checkpoints["sd1"], device="meta")
    segmenter = Segmenter(Backbone(checkpoint), settings_of(tau=(0.1,)), batch_size=2)
    segmenter.launch([segmenter.prepare(np.zeros((50, 70, 3), dtype=np.uint8))])
    assert waits == []


def test_the_pass_of_the_next_batch_is_sent_before_the_numbers_of_a_batch_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU stands in for a device that computes later, and merging reads numbers as it does there."""
    segmenter = Segmenter.from_pretrained("tiny", batch_size=2, resolution=64, method=("diffseg",))
    inputs = [segmenter.prepare(generate_scene(seed, 64).image) for seed in range(5)]
    batches = [inputs[:2], inputs[2:4], [], inputs[4:]]
    expected = [segmenter.launch(batch).results() if batch else None for batch in batches]
    events: list[str] = []
    record, read = segmenter.attention_of, HostCopy.arrays

    def recorded(*arguments: Any) -> Any:
        events.append("pass")
        return record(*arguments)

    def arrays(copy: HostCopy) -> Any:
        (read_now,) = read(copy)[:1]
        events.extend(["numbers"] if read_now.dtype == np.int64 else [])
        return read(copy)

    monkeypatch.setattr(segmenter, "attention_of", recorded)
    monkeypatch.setattr(HostCopy, "arrays", arrays)
    monkeypatch.setattr(devices, "computes_later", lambda device: True)
    monkeypatch.setattr(merging, "_may_read_values", lambda rows: False)
    launched = [pending and pending.results() for pending in segmenter.launch_each(batches)]
    assert events[:3] == ["pass", "pass", "numbers"]
    assert events.count("pass") == 3
    for found, wanted in zip(launched, expected, strict=True):
        assert (found is None) == (wanted is None)
        for ours, other in zip(found or (), wanted or (), strict=True):
            assert isinstance(ours, Segmentation)
            assert isinstance(other, Segmentation)
            assert np.array_equal(ours.labels, other.labels)


def test_an_error_of_work_in_a_wait_is_raised_where_its_result_is_read() -> None:
    def fail() -> None:
        raise ValueError("no next batch")

    work = Once(fail)
    work.run()
    with pytest.raises(ValueError, match="no next batch"):
        work.result()


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_merging_a_batch_agrees_with_merging_each_image_alone(consume: Consume) -> None:
    rows = np.stack([planted(voronoi(16, k, k), leak=0.1, noise=0.5, seed=k) for k in (3, 7, 5)])
    attention = torch.from_numpy(rows).float()
    anchors = anchor_positions((16, 16), 8)
    together, valid = merge(attention, anchors=anchors, tau=(0.8,) * 3, consume=consume)
    live = valid.sum(dim=1).tolist()
    assert len(set(live)) > 1, "images with equal numbers of proposals would hide a mix-up"
    assert together.shape == (3, max(live), 256)
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


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@NEEDS_GPU
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": ("diffseg",)}, {"method": ("diffseg", "walk", "par")}, {"fit": "letterbox", "min_area": 0.01}],
    ids=["default", "merging", "walk", "letterbox"],
)
def test_a_gpu_and_a_cpu_agree_on_labels(options: dict[str, Any], batch_size: int) -> None:
    images = [generate_scene(seed, 200).image for seed in range(4)]
    images[1] = images[1][:150]  # the images of a batch have different sizes
    expected = Segmenter.from_pretrained("tiny", **options)(images)
    on_gpu = Segmenter.from_pretrained("tiny", device="cuda", batch_size=batch_size, **options)(images)
    for cpu, gpu in zip(expected, on_gpu, strict=True):
        assert (cpu.labels == gpu.labels).mean() >= 0.995
        assert gpu.confidence == pytest.approx(cpu.confidence, abs=1e-2)


@NEEDS_GPU
def test_a_gpu_and_a_cpu_agree_on_names() -> None:
    images, names = [generate_scene(seed, 200).image for seed in range(3)], ["dog", "car", "tree"]
    expected = Segmenter.from_pretrained("tiny-text", naming=True)(images, names)
    on_gpu = Segmenter.from_pretrained("tiny-text", device="cuda", naming=True, batch_size=3)(images, names)
    for cpu, gpu in zip(expected, on_gpu, strict=True):
        assert (cpu.labels == gpu.labels).mean() >= 0.995
        assert [segment.name for segment in cpu.segments] == [segment.name for segment in gpu.segments]


@NEEDS_GPU
def test_a_batch_on_a_gpu_waits_only_for_the_number_of_proposals() -> None:
    segmenter = Segmenter.from_pretrained("tiny", device="cuda", batch_size=2, min_area=0.01)
    inputs = [segmenter.prepare(generate_scene(seed, 200).image) for seed in range(2)]
    segmenter.launch(inputs).results()  # the first batch compiles kernels and fills caches
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            segmenter.launch(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The wait for the number of proposals is that for an event, which gives no warning.
    assert [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)] == []


@NEEDS_GPU
def test_the_kernels_of_the_method_run_on_a_gpu_that_has_triton() -> None:
    pytest.importorskip("triton")
    assert runs_kernels(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", torch.channels_last),
        ("cuda", torch.contiguous_format),
        ("mps", torch.contiguous_format),
        ("meta", torch.contiguous_format),
    ],
)
def test_the_memory_format_depends_on_the_device(device: str, expected: torch.memory_format) -> None:
    assert fastest_memory_format(torch.device(device)) == expected


@pytest.mark.parametrize(("device", "channels_last"), [("cpu", True), ("meta", False)])
def test_weights_are_loaded_in_the_memory_format_of_their_device(
    device: str, channels_last: bool, checkpoints: dict[str, Path]
) -> None:
    checkpoint = load_checkpoint(checkpoints["sd1"], device=device)
    for weight in (checkpoint.unet.conv_in.weight, checkpoint.vae.encoder.conv_in.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert weight.is_contiguous() != channels_last


def test_a_host_copy_keeps_values_shapes_and_dtypes() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(6, dtype=torch.int16).view(2, 3),
        torch.arange(8, dtype=torch.int64).view(2, 4).T,
        torch.zeros(0, 5, dtype=torch.uint8),
        torch.tensor([[1.5]]),
    ]
    arrays = HostCopy(tensors).arrays()
    assert [array.dtype for array in arrays] == [np.bool_, np.int16, np.int64, np.uint8, np.float32]
    for tensor, array in zip(tensors, arrays, strict=True):
        assert array.shape == tensor.shape
        assert np.array_equal(array, tensor.numpy())


def test_only_large_copies_to_a_gpu_start_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    class Recorded(torch.Tensor):
        """A tensor that records its copies to a GPU instead of making them."""

        def pin_memory(self, device: Any = None) -> torch.Tensor:
            pinned.append(self.nbytes)
            return self

        def to(self, *arguments: Any, **options: Any) -> Any:
            assert options == {"non_blocking": True}
            return self

    for count in (1, UNPINNED_BYTES, UNPINNED_BYTES + 1):
        to_device(torch.zeros(count, dtype=torch.uint8).as_subclass(Recorded), torch.device("cuda"))
    assert pinned == [UNPINNED_BYTES + 1]


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
