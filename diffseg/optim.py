"""Learning-rate schedule and optimiser steps that every training in the project shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(through: float) -> float:
    """Half a cosine from 1 to 0 while `through` goes from 0 to 1."""
    return 0.5 + 0.5 * math.cos(math.pi * through)


def optimiser_of(network: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters of `network`; the rate is set before each step by `set_lr`."""
    return torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own `factor` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def descend(loss: Tensor, network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """One step against the gradient of `loss`; raises RuntimeError where the gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
    optimiser.step()
