"""Triton kernels of the method agree with torch: compiled on a GPU, and interpreted on a machine without one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import planted, voronoi

from diffseg.component_settings import Consume
from diffseg.method import distance, grouping
from diffseg.method import par as refinement
from diffseg.method.distance import symmetric_kl
from diffseg.method.grouping import greedy_groups
from diffseg.method.kernels import runs_kernels
from diffseg.method.merge import anchor_positions, merge
from diffseg.method.par import OFFSETS, neighbour_weights, pixel_adaptive, pixel_adaptive_in_kernels

pytest.importorskip("triton", reason="the kernels need Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the kernels run; conftest.py makes Triton interpret them where there is no GPU."""


@pytest.mark.parametrize("consume", ["paper", "google"])
@pytest.mark.parametrize("density", [0.05, 0.4])
@pytest.mark.parametrize("count", [1, 6, 20])
def test_the_walk_of_random_masks_gives_the_same_groups(count: int, density: float, consume: Consume) -> None:
    from diffseg.method.grouping_kernel import greedy_groups_in_a_kernel

    generator = torch.Generator().manual_seed(count)
    close = torch.rand(3, count, count, generator=generator) < density
    valid = torch.rand(3, count, generator=generator) < 0.7
    groups, starts = greedy_groups_in_a_kernel(close.to(DEVICE), valid.to(DEVICE), consume)
    expected_groups, expected_starts = greedy_groups(close, valid, consume)
    assert torch.equal(groups.cpu(), expected_groups)
    assert torch.equal(starts.cpu(), expected_starts)


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_merging_with_the_kernel_gives_the_same_proposals(consume: Consume, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.stack([planted(voronoi(12, k, k), leak=0.1, noise=0.5, seed=k) for k in (3, 5)])
    attention, anchors = torch.from_numpy(rows).float(), anchor_positions((12, 12), 4)
    expected, expected_valid = merge(attention, anchors=anchors, tau=(0.8,) * 3, consume=consume)
    monkeypatch.setattr(grouping, "runs_kernels", lambda device: True)
    proposals, valid = merge(attention.to(DEVICE), anchors=anchors, tau=(0.8,) * 3, consume=consume)
    assert torch.equal(valid.cpu(), expected_valid)
    torch.testing.assert_close(proposals.cpu(), expected)


def test_the_weights_of_refinement_and_a_step_of_it_agree_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "ITERATIONS", 1)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 12, generator=generator) * 2 - 1
    image[0, :, :, :6] = 0.3  # a constant colour
    scores = torch.rand(2, 3, 9, 12, generator=generator)
    refined = pixel_adaptive_in_kernels(scores.to(DEVICE), image.to(DEVICE))
    torch.testing.assert_close(refined.cpu(), pixel_adaptive(scores, image), rtol=1e-4, atol=1e-5)


def test_steps_of_refinement_agree_for_several_blocks_of_pixels_and_of_proposals() -> None:
    from diffseg.method.par_kernel import PIXELS, PROPOSALS, weighted_means_in_kernels

    generator = torch.Generator().manual_seed(0)
    count, height, width = PROPOSALS + 1, 3, PIXELS // 2
    scores = torch.rand(1, count, height, width, generator=generator)
    weights = torch.rand(1, 2, height, width, generator=generator)
    before = scores.clone()
    offsets = torch.tensor([[-1, 2], [1, 0]], dtype=torch.int32)
    means = weighted_means_in_kernels(scores.to(DEVICE), weights.to(DEVICE), offsets.to(DEVICE), iterations=3)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    expected = scores.double()
    for _ in range(3):
        expected = sum(
            weights[:, n, None] * expected[:, :, (rows + y).clamp(0, height - 1), (columns + x).clamp(0, width - 1)]
            for n, (y, x) in enumerate(offsets.tolist())
        )
    torch.testing.assert_close(means.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(scores, before)


def test_weights_of_several_blocks_of_pixels_agree() -> None:
    from diffseg.method.par_kernel import WEIGHT_PIXELS, neighbour_weights_in_a_kernel

    image = torch.rand(2, 3, 5, WEIGHT_PIXELS - 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = neighbour_weights_in_a_kernel(
        image.to(DEVICE),
        torch.tensor(OFFSETS, dtype=torch.int32, device=DEVICE),
        refinement._proximity(DEVICE),
        bandwidth=refinement.BANDWIDTH,
        min_deviation=refinement.MIN_DEVIATION,
        distance_weight=refinement.DISTANCE_WEIGHT,
    )
    torch.testing.assert_close(weights.cpu().transpose(0, 1), neighbour_weights(image), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 40), (5, 1500)], ids=["batch", "more positions than a program reads at once"])
def test_distances_with_the_kernel_are_the_same(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    rows[..., 0, :7] = 0
    rows /= rows.sum(dim=-1, keepdim=True)
    some = rows[..., :2, :]  # in a batch this view is not contiguous
    expected = symmetric_kl(some, rows)
    monkeypatch.setattr(distance, "runs_kernels", lambda device: True)
    monkeypatch.setattr(distance, "_rows_per_block", lambda q: 2)
    torch.testing.assert_close(symmetric_kl(some.to(DEVICE), rows.to(DEVICE)).cpu(), expected, atol=1e-5, rtol=1e-5)
    assert expected.max() > 0.1


def test_cpus_use_no_kernels() -> None:
    assert not any(runs_kernels(torch.device(name)) for name in ("cpu", "meta", "mps"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine on which CUDA fails")
def test_a_gpu_on_which_kernels_fail_uses_torch_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not runs_kernels.__wrapped__(torch.device("cuda"))
    assert "because the Triton kernels do not work here" in caplog.text


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffseg.method import decide_kernel, distance_kernel, grouping_kernel, par_kernel

TYPES = {
    "u8": "close valid groups starts margins",
    "i16": "labels label_of",
    "i32": "offsets",
    "i64": "layout stats",
    "fp32": "image proximity weights scores means boxes values logs sums",
}
POINTERS = {name: "*" + kind for kind, names in TYPES.items() for name in names.split()}
FLOATS = ("floor", "bandwidth", "min_variance", "distance_weight", "margin_unit")
for kernel, constants in (
    (grouping_kernel._walk, {"count": 256, "padded": 256, "removes": True}),
    (decide_kernel._choose, {"keep_margins": True, "pixels": decide_kernel.PIXELS}),
    (decide_kernel._relabel, {"pixels": decide_kernel.PIXELS}),
    (distance_kernel._take_logarithms, {"block": distance_kernel.POSITIONS}),
    (par_kernel._compute_weights, {"count": 48, "padded": 64, "pixels": par_kernel.WEIGHT_PIXELS}),
    (par_kernel._take_means, {"neighbours": 48, "pixels": par_kernel.PIXELS, "proposals": par_kernel.PROPOSALS}),
):
    def kind(name):
        return "constexpr" if name in constants else POINTERS.get(name, "fp32" if name in FLOATS else "i32")

    source = ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(kernel.__name__)
"""


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler. Compiling needs no GPU, but a process that does not interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
