"""What a device, and the memory of this process, want for speed."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of this process on the device; a GPU is not waited for, as the copy starts from pinned memory."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype, non_blocking=device.type == "cuda")


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, up to its peak, for what it allocates next.

    By default glibc gives arrays of more than a few MiB back to the kernel, which hands them out again as zeroed pages,
    one fault for each: a fifth of the time of a VAE. For processes of our own; a library should not decide this for
    its users. To be called once the model is loaded, as loading frees half as much again as the weights, which is given
    back. Does nothing where the C library is another.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host in torch's hands, had no room for an array."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


def release_device_memory(device: str) -> None:
    """Return to a GPU what torch keeps of it for later; `device` is its kind."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
