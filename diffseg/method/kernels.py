"""Whether the Triton kernels of the method can be used."""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)


@functools.cache
def runs_kernels(device: torch.device) -> bool:
    """Return whether Triton kernels run on a device: an NVIDIA GPU, with Triton, which torch's CUDA builds install.

    The smallest kernel is tried, because Triton also needs a C compiler. A failure is logged once.
    """
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    from diffseg.method.grouping_kernel import greedy_groups_in_a_kernel

    try:
        itself = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        greedy_groups_in_a_kernel(itself, itself[0], "paper")
    except Exception as error:  # what fails here is a compiler, a driver or a kernel, with errors of any class
        log.warning("merging and refinement take thousands of small kernels, because Triton's do not work: %s", error)
        return False
    return True
