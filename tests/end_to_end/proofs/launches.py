"""Count the operations that the method sends to a GPU for a batch, without a GPU: `make proof NAME=launches`.

Each is a kernel, some are two or three, and sending one takes some 5 to 10 µs, however small the batch. The method runs
on the meta device, whose tensors have shapes but no values. It needs Triton, whose kernels are counted but not run.

Axes: B images in the batch, K proposals, P = h·w positions.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffseg import Segmenter
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.images.canvas import ModelInput
from diffseg.method import (
    decide,
    decide_kernel,
    distance,
    distance_kernel,
    grouping,
    grouping_kernel,
    merge,
    par,
    par_kernel,
)
from diffseg.method.proposals import aggregate_attention
from diffseg.method.signals import Signals

META = torch.device("meta")
LIVE_PROPOSALS = 20
"""Proposals of each image that are left after merging. Their number makes no difference to the counts."""

SD15_LAYERS: dict[Grid, int] = {(64, 64): 5, (32, 32): 5, (16, 16): 5, (8, 8): 1}
"""Self-attention layers of SD 1.5 by resolution, at 512 pixels."""

SIZES = tuple((480 + 8 * number, 640) for number in range(16))
"""Sizes of images, in pixels."""

NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "_unsafe_view"}
"""Operations that neither compute nor copy."""


class LaunchCounter(TorchDispatchMode):
    """Counts the operations on the meta device that compute or copy values, by step; views and allocations do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._step = "transfer"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what follows under the name of a step. This is a `Step` of `Segmenter.launch`."""
        previous, self._step = self._step, name
        yield
        self._step = previous

    def count(self, launches: int = 1) -> None:
        """Count launches that do not pass through torch's dispatcher, which are those of Triton kernels."""
        self.counts[self._step] += launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, and count it if its result lies on the meta device; a composite one by its parts."""
        options = kwargs or {}
        with self:
            result = func.decompose(*args, **options)
        if result is not NotImplemented:
            return result
        result = func(*args, **options)
        results = result if isinstance(result, tuple | list) else [result]
        on_device = any(isinstance(value, torch.Tensor) and value.device == META for value in results)
        if on_device and not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            self.count()
        return result


def launches_by_step(
    images: int,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES[:1],
    method: tuple[str, ...] = ("diffseg", "par"),
    **settings: Any,
) -> Counter[str]:
    """Count the launches for a batch from recorded attention to label maps on their way to the host.

    Args:
        images: Images in the batch.
        sizes: Sizes of the images, which take turns.
        method: Stages of the method.
        settings: Other settings of the method.
    """
    segmenter = Segmenter.from_pretrained("tiny", batch_size=images, method=method, resolution=512, **settings)
    inputs = [segmenter.prepare(np.zeros((*sizes[image % len(sizes)], 3), np.uint8)) for image in range(images)]
    maps = {grid: torch.empty(images, grid[0] * grid[1], grid[0] * grid[1], device=META) for grid in SD15_LAYERS}
    attention = SelfAttention(maps=maps, layers=dict(SD15_LAYERS))
    with LaunchCounter() as counter, _kernels_counted(counter, images), torch.inference_mode():
        for _ in range(2):  # the first batch also makes the matrices that are kept for later ones
            counter.counts.clear()
            with counter.step("aggregate"):
                aggregated, grid, finite = aggregate_attention(attention, segmenter.settings, overwrite=True)
            signals = Signals(pixels=_pixels(inputs), grid=grid, self_attention=aggregated, finite=finite)
            segmenter.from_attention(signals, inputs, counter.step)
    return counter.counts


def _pixels(inputs: Sequence[ModelInput]) -> torch.Tensor:
    """Return the squares of a batch on the device, where the model has read them, float32 [B, 3, S, S]."""
    return torch.empty(len(inputs), *inputs[0].pixels.shape, device=META)


class _CountedKernel:
    """Stands in for a Triton kernel, which needs values: a launch is counted and computes nothing."""

    def __init__(self, counter: LaunchCounter) -> None:
        self._counter = counter

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """Return what launches the kernel with a grid of programs."""
        return lambda *arguments, **options: self._counter.count()


@contextmanager
def _kernels_counted(counter: LaunchCounter, images: int) -> Iterator[None]:
    """Use the code for GPUs with Triton, whose kernels are only counted, and answer the wait for the device."""
    kernels = {
        grouping_kernel: ("_walk",),
        par_kernel: ("_compute_weights", "_take_means"),
        decide_kernel: ("_choose", "_relabel"),
        distance_kernel: ("_take_logarithms",),
    }
    with ExitStack() as stack:
        for module, names in kernels.items():
            for name in names:
                stack.enter_context(patch.object(module, name, _CountedKernel(counter)))
        for module in (distance, grouping, par, decide):
            stack.enter_context(patch.object(module, "runs_kernels", lambda device: True))
        stack.enter_context(patch.object(merge, "wait_for_numbers", lambda numbers: [LIVE_PROPOSALS] * images))
        yield


STEPS = ("aggregate", "merge", "refine", "decide", "transfer")
ROWS: dict[str, Callable[[], Counter[str]]] = {
    "1 image": lambda: launches_by_step(1),
    "16 images of one size": lambda: launches_by_step(16),
    "16 images of four sizes": lambda: launches_by_step(16, sizes=SIZES[:4]),
    "16 images of sixteen sizes": lambda: launches_by_step(16, sizes=SIZES),
}


def main() -> None:
    """Print a table of launches by step."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| batch | " + " | ".join(STEPS) + " | in all |")
    for name, count in ROWS.items():
        counts = count()
        print(f"| {name} | " + " | ".join(str(counts[step]) for step in STEPS) + f" | {counts.total()} |")


if __name__ == "__main__":
    main()
