"""The sampling methods of diffusers: which one a generation uses, and what its steps are.

A diffusers scheduler has state, so each batch gets a new one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np

from diffseg.generation.settings import SchedulerName
from diffseg.model.checkpoint import CheckpointError
from diffseg.model.conditioning import FIRST_BETA, LAST_BETA, TRAINING_STEPS, noise_to_signal

SUPPORTED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)
"""Sampling methods that a checkpoint may have."""

BY_NAME: Mapping[SchedulerName, str] = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Sampling methods by their names in the settings."""

STABLE_DIFFUSION: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": TRAINING_STEPS,
    "beta_start": FIRST_BETA,
    "beta_end": LAST_BETA,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Configuration of checkpoints that have none. Single files give only the differences from it."""

MOST_TRAINING_STEPS = 10_000


def check_scheduler(config: Mapping[str, Any], shown: str) -> None:
    """Check the configuration of a checkpoint's own sampling method.

    Raises:
        CheckpointError: It is not supported; the message names the checkpoint as `shown`.
    """
    config = complete(config)
    name, steps = config["_class_name"], config.get("num_train_timesteps", TRAINING_STEPS)
    if name not in SUPPORTED:
        raise CheckpointError(f"scheduler of {shown}: is a {name}; expected one of {', '.join(SUPPORTED)}")
    if not isinstance(steps, int) or not 1 <= steps <= MOST_TRAINING_STEPS:
        raise CheckpointError(
            f"scheduler of {shown}: num_train_timesteps is {steps!r}; expected an integer from 1 to "
            f"{MOST_TRAINING_STEPS}"
        )


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, completed by that of Stable Diffusion if it names no sampling method."""
    return dict(config) if "_class_name" in config else {**STABLE_DIFFUSION, **config}


def make_scheduler(name: SchedulerName, config: Mapping[str, Any], steps: int, device: Any = "cpu") -> Any:
    """Return a new scheduler whose steps are set.

    Args:
        name: The sampling method.
        config: Configuration of the checkpoint's sampling method, see `complete`. It also states what the network
            predicts and the noise schedule of its training.
        steps: Number of steps.
        device: Where the latents are.

    Raises:
        ValueError: The method cannot have this number of steps, or cannot replace that of the checkpoint.
    """
    config = complete(config)
    own = config["_class_name"]
    kind_name = own if name == "checkpoint" else BY_NAME[name]
    if own.startswith("EDM") != kind_name.startswith("EDM"):
        raise ValueError(f"scheduler={name}: this checkpoint is sampled by its own method only, {own}")
    kind: Any = getattr(diffusers, kind_name)
    if "clip_sample" in inspect.signature(kind).parameters:  # clips by default, which suits images and not latents
        config.setdefault("clip_sample", False)
    with warnings.catch_warnings():  # numpy 2 warns about how diffusers 0.42 turns tensors into arrays
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler = kind.from_config(config)
        scheduler.set_timesteps(steps, device=device)
    return scheduler


def diffusion_timesteps(scheduler: Any, sigma_data: float | None) -> Sequence[float]:
    """Return, for each step, the diffusion timestep of Stable Diffusion that has the same noise, 0 to 999.

    Args:
        scheduler: A scheduler whose steps are set.
        sigma_data: Standard deviation of the latents in the formulation of EDM, see
            `diffseg.model.checkpoint.Checkpoint`; None for all other networks.
    """
    timesteps = scheduler.timesteps.tolist()
    if sigma_data is None:
        return timesteps
    ratios = np.log([noise_to_signal(timestep) for timestep in range(TRAINING_STEPS)])
    noise = np.log(np.array(scheduler.sigmas[: len(timesteps)].tolist()) / sigma_data)
    return [float(np.abs(ratios - of_step).argmin()) for of_step in noise]


def step_options(scheduler: Any, generators: Sequence[Any]) -> dict[str, Any]:
    """Return further arguments of a scheduler's `step`: the generators of its noise, if it draws any."""
    return {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
