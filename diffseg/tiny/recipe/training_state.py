"""State on disk and progress messages, shared by the trainings of the autoencoder and of the UNets."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["ProgressLog", "load_state", "save_state"]

log = logging.getLogger(__name__)


@dataclass
class ProgressLog:
    """Logs the mean losses and the remaining time, once every few steps.

    Attributes:
        stage: Name of the training in the message.
        steps: Number of steps of the whole training.
        every: Steps per message.
        sums: Sum of each loss since the last message.
        count: Steps since the last message.
        steps_timed: Steps since `started`.
        started: Time at which this log was created, from `time.perf_counter`.
    """

    stage: str
    steps: int
    every: int = 25
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    steps_timed: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, step: int, **losses: float) -> None:
        """Add the losses of a step, and log a message if one is due."""
        self.count, self.steps_timed = self.count + 1, self.steps_timed + 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % self.every and step + 1 != self.steps:
            return
        pace = (time.perf_counter() - self.started) / self.steps_timed
        text = "  ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
        minutes_left = pace * (self.steps - step - 1) / 60
        message = "%s %d/%d  %s  %.0f ms per step, %.1f min left"
        log.info(message, self.stage, step + 1, self.steps, text, 1000 * pace, minutes_left)
        self.sums, self.count = {}, 0


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Save a training; if the process is killed meanwhile, the previous file remains complete.

    Args:
        path: File to write; it is replaced by a rename.
        step: Number of completed steps.
        parts: Modules, optimisers and dicts of tensors, by name.
    """
    state = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **state}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def load_state(path: Path, **parts: Any) -> int:
    """Restore a training in place.

    Args:
        path: File written by `save_state`; it may be missing.
        parts: Modules, optimisers and dicts to restore, by the names under which they were saved.

    Returns:
        The number of completed steps; 0 if there is no file.
    """
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        if isinstance(part, dict):
            part.update(state[name])
        else:
            part.load_state_dict(state[name])
    return state["step"]
