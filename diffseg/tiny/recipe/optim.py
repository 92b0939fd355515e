"""What the two training stages share: schedules, steps, state on disk, a line of progress."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffseg.optim import cosine, descend, optimiser_of, set_lr

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
