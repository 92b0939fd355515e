"""Learning-rate schedule and optimiser steps that all training in the project shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def cosine(progress: float) -> float:
    """Return a factor that falls along half a cosine from 1 to 0 while the progress goes from 0 to 1."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def optimiser_of(network: torch.nn.Module, groups: Sequence[dict[str, Any]] | None = None) -> torch.optim.Optimizer:
    """Return AdamW over all parameters of a network; `set_lr` sets the learning rate before each step.

    Args:
        network: The network.
        groups: Groups of its parameters, each with `params` and a `factor`; None for a single group.
    """
    params = network.parameters() if groups is None else groups
    return torch.optim.AdamW(params, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, multiplied by the group's own `factor` if it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def descend(loss: Tensor, network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Take one optimiser step, with the norm of the gradient clipped to 1.

    Raises:
        RuntimeError: The gradient is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
    optimiser.step()
