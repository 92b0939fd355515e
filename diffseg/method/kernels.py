"""Whether the Triton kernels of the method can be used."""

from __future__ import annotations

import functools
import logging

import torch

from diffseg.devices import supports_triton

log = logging.getLogger(__name__)


@functools.cache
def runs_kernels(device: torch.device) -> bool:
    """Return whether Triton kernels run on a device, which must be an NVIDIA GPU.

    The smallest kernel is tried, because Triton also needs a C compiler. A failure is logged once.
    """
    if not supports_triton(device):
        return False
    from diffseg.method.grouping_kernel import greedy_groups_in_a_kernel

    try:
        itself = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        greedy_groups_in_a_kernel(itself, itself[0], "paper")
    except Exception as error:  # what fails here is a compiler, a driver or a kernel, with errors of any class
        log.warning(
            "merging, refinement and deciding run in plain torch, which takes longer, because the Triton kernels do "
            "not work here: %s",
            error,
        )
        return False
    return True
