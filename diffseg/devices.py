"""Transfers to and from a device, the memory layout it prefers, and the memory of the device and of this process."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")

UNPINNED_BYTES = 2**16
"""Largest copy to a GPU that starts from ordinary memory: CUDA then takes the bytes at once and does not wait."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""


def supports_triton(device: torch.device) -> bool:
    """Return whether a device is an NVIDIA GPU and Triton is installed, as it is with torch's builds for CUDA."""
    return device.type == "cuda" and torch.version.hip is None and find_spec("triton") is not None


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Copy a tensor to a device, unless it is there already.

    The host does not wait for a GPU, because large copies start from pinned memory.
    """
    is_large = tensor.nbytes > UNPINNED_BYTES
    if device.type == "cuda" and tensor.device.type == "cpu" and is_large:
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype, non_blocking=device.type == "cuda")


_work_in_wait: ContextVar[Callable[[], None] | None] = ContextVar("work_in_wait", default=None)


@contextmanager
def work_in_wait(work: Callable[[], None]) -> Iterator[None]:
    """Let the first `wait_for_numbers` within this context call a function while a GPU computes the numbers.

    What the function sends to the GPU runs after the numbers. So the GPU has work when the host begins to use them.
    """
    token = _work_in_wait.set(work)
    try:
        yield
    finally:
        _work_in_wait.reset(token)


def computes_later(device: torch.device) -> bool:
    """Return whether a device computes while the host goes on, until the host waits for it."""
    return device.type == "cuda"


class Once(Generic[Result]):
    """A function without arguments that is called at most once. It gives its result, or raises its error, later."""

    def __init__(self, call: Callable[[], Result]) -> None:
        """Keep the function, without calling it."""
        self._call = call
        self._future: Future[Result] = Future()

    def run(self) -> None:
        """Call the function, and keep its result or its error."""
        try:
            self._future.set_result(self._call())
        except BaseException as error:
            self._future.set_exception(error)

    def result(self) -> Result:
        """Return the result of the function or raise its error. Calls it first if that has not been done."""
        if not self._future.done():
            self.run()
        return self._future.result()


def wait_for_numbers(numbers: torch.Tensor) -> list[int]:
    """Wait for a device and return a few numbers that it computed.

    Until its results are requested, a batch waits here only, and at most once, because every wait leaves the device
    without work until the next launch, unless `work_in_wait` provides some.

    Args:
        numbers: Integers, [n].
    """
    copy = HostCopy([numbers])
    work = _work_in_wait.get()
    if work is not None and computes_later(numbers.device):
        _work_in_wait.set(None)
        work()
    return copy.arrays()[0].tolist()


class HostCopy:
    """A copy of tensors in host memory, made in one transfer. A GPU makes it while the host does other work."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Queue the transfer after the work that computes the tensors, which are all on one device."""
        self._layout = [(tensor.shape, np.dtype(str(tensor.dtype).removeprefix("torch."))) for tensor in tensors]
        self._packed = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
        self._copied: torch.cuda.Event | None = None
        if self._packed.device.type == "cuda":
            stream = torch.cuda.current_stream(self._packed.device)
            host = torch.empty(self._packed.shape, dtype=torch.uint8, pin_memory=True)
            self._packed = host.copy_(self._packed, non_blocking=True)
            self._copied = stream.record_event()

    def arrays(self) -> list[np.ndarray]:
        """Wait for the transfer, and return the tensors as arrays that share the memory of the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        packed, arrays, start = self._packed.cpu().numpy(), [], 0
        for shape, dtype in self._layout:
            stop = start + math.prod(shape) * dtype.itemsize
            arrays.append(packed[start:stop].view(dtype).reshape(shape))
            start = stop
        return arrays


def fastest_memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of convolution weights that is the fastest on a device.

    On CPUs it is channels-last. On CUDA it is contiguous, as diffusers loads weights: group normalisation needs that
    layout, and copies between the two layouts take longer than channels-last saves. On an H200 in bfloat16, the pass of
    SD 1.5 took 11.0 ms per image with channels-last weights and 8.7 ms with contiguous ones (docs/performance.md).
    Other devices were not measured, and weights stay there as they are loaded.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, up to its peak, for later allocations.

    By default glibc returns arrays of more than a few MiB to the kernel. The kernel then provides zeroed pages again,
    at the cost of one page fault each, which takes a fifth of the time of a VAE.

    Only this project's own processes call this function, because a library should not decide it for its users. Call it
    after the model has been loaded: loading frees half as much memory again as the weights need, and that memory is
    returned to the kernel here. With another C library the function does nothing.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def out_of_memory(error: BaseException) -> bool:
    """Return whether torch could not allocate memory, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


def release_device_memory(device: str) -> None:
    """Release the device memory that torch caches for later allocations; `device` is its type, such as cuda."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
