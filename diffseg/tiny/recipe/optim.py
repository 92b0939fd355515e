"""What the two training stages share: schedules, steps, state on disk, a line of progress."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Progress", "cosine", "descend", "load_state", "optimiser_of", "save_state", "set_lr"]

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Loss averages and the time left, one log line at a time."""

    stage: str
    steps: int
    every: int = 25
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    done_here: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, step: int, **losses: float) -> None:
        self.count, self.done_here = self.count + 1, self.done_here + 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % self.every and step + 1 != self.steps:
            return
        pace = (time.perf_counter() - self.started) / self.done_here
        text = "  ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
        left = pace * (self.steps - step - 1) / 60
        log.info(
            "%s %d/%d  %s  %.0f ms a step, %.1f min left", self.stage, step + 1, self.steps, text, 1000 * pace, left
        )
        self.sums, self.count = {}, 0


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


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Write modules, optimisers and dicts of tensors, and the steps done; a kill leaves the old file whole."""
    state = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **state}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def load_state(path: Path, **parts: Any) -> int:
    """Restore the named parts in place and return the number of steps done; 0 without a file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        if isinstance(part, dict):
            part.update(state[name])
        else:
            part.load_state_dict(state[name])
    return state["step"]
