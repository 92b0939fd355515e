"""What the workers of a training compute together, so that their number does not change the result of a step.

Without torch.distributed there is one worker, and nothing is exchanged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def place() -> tuple[int, int]:
    """Return the rank of this worker and the number of workers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all workers, without a gradient; every worker must call it."""
    if place()[1] == 1:
        return value.detach()
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value


def own_part(drawn: np.ndarray, axis: int) -> np.ndarray:
    """Return this worker's part of what was drawn for the images of all workers.

    Args:
        drawn: Equal on all workers; its length along `axis` is a multiple of the number of workers.
        axis: The axis of the images.
    """
    rank, workers = place()
    return np.split(drawn, workers, axis=axis)[rank]
