"""The sampling method is the checkpoint's own or a chosen one, with the checkpoint's noise schedule."""

from __future__ import annotations

from typing import Any

import pytest

from diffseg.generation.schedule import STABLE_DIFFUSION, check_scheduler, diffusion_timesteps, make_scheduler
from diffseg.generation.settings import SchedulerName
from diffseg.model.conditioning import noise_to_signal
from diffseg.model.layout import CheckpointError

EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("checkpoint", "PNDMScheduler"),
        ("ddim", "DDIMScheduler"),
        ("dpm++", "DPMSolverMultistepScheduler"),
        ("lcm", "LCMScheduler"),
    ],
)
def test_a_chosen_method_keeps_what_the_checkpoint_was_trained_with(name: SchedulerName, expected: str) -> None:
    config = {**STABLE_DIFFUSION, "_class_name": "PNDMScheduler", "prediction_type": "v_prediction", "beta_end": 0.013}
    scheduler = make_scheduler(name, config | {"skip_prk_steps": True}, 4)
    assert type(scheduler).__name__ == expected
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_end == 0.013
    assert not scheduler.config.get("clip_sample", False)
    assert len(set(scheduler.timesteps.tolist())) == 4


def test_a_checkpoint_without_a_configuration_has_that_of_stable_diffusion() -> None:
    scheduler = make_scheduler("checkpoint", {}, 5)
    assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]
    assert scheduler.config.beta_schedule == "scaled_linear"


def test_the_noise_of_an_edm_step_has_a_timestep_of_stable_diffusion() -> None:
    scheduler = make_scheduler("checkpoint", EDM, 12)
    sigmas = scheduler.sigmas[:12].tolist()
    timesteps = diffusion_timesteps(scheduler, 0.5)
    assert timesteps[0] == 999  # its noise exceeds that of all timesteps
    assert timesteps[-1] == 0
    known = [(t, sigma) for t, sigma in zip(timesteps, sigmas, strict=True) if 0 < t < 999]
    assert len(known) > 4
    for timestep, sigma in known:
        assert noise_to_signal(int(timestep) - 1) < sigma / 0.5 < noise_to_signal(int(timestep) + 1)


def test_an_edm_checkpoint_has_no_other_method() -> None:
    with pytest.raises(ValueError, match="sampled by its own method only, EDMEulerScheduler"):
        make_scheduler("ddim", EDM, 5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "is a KarrasVeScheduler; expected one of DDIMScheduler"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000; expected an integer from 1 to 10000"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError, match=f"scheduler of m: {expected}"):
        check_scheduler({**STABLE_DIFFUSION, **change}, "m")
