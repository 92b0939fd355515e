"""Transfers to a device, and the memory of the device and of this process."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Copy a tensor to a device, unless it is there. A GPU is not waited for: the copy starts from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype, non_blocking=device.type == "cuda")


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
