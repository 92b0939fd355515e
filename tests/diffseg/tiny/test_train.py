"""A miniature of the recipe: it reduces its losses, and it resumes after a kill to the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from recipe_options import recipe_options
from torch.nn import functional as F
from warm import WarmCommand

from diffseg.tiny.recipe.latents import encode_images, images_to_tensor
from diffseg.tiny.recipe.model import build_networks, empty_context
from diffseg.tiny.recipe.objective import RowRecorder, attention_loss, region_targets
from diffseg.tiny.recipe.settings import Recipe, TrainingStage, stage_at
from diffseg.tiny.recipe.train import train
from diffseg.tiny.recipe.training_state import load_state
from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS

MINI = Recipe(
    size=128,
    leaves=12,
    scenes=6,
    vae_scenes=6,
    vae_steps=20,
    vae_batch=2,
    vae_lr=4e-3,
    stages=(
        TrainingStage(scenes="leaves", steps=8, batch=2, crop=0.5, lr=(1.5e-3, 6e-4), warmup=2, hold=4),
        TrainingStage(scenes="leaves", steps=5, batch=2, lr=(9e-4, 0.0)),
        TrainingStage(scenes="leaves", steps=2, batch=2, lr=(6e-4, 0.0)),
        TrainingStage(scenes="scenes", steps=3, batch=2, lr=(9e-4, 0.0), queries=16),
    ),
)
Networks = tuple[AutoencoderTiny, UNet2DConditionModel]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return train(MINI, tmp_path_factory.mktemp("uninterrupted"))


def command(out: Path) -> list[str]:
    program = ["diffseg.tiny.recipe.train", f"--out={out}", f"--checkpoint={out}/made"]
    return [*program, "--save-every=1", *recipe_options(MINI, Recipe())]


def test_a_killed_training_resumes_to_the_same_weights(uninterrupted: Networks, tmp_path: Path) -> None:
    killed = WarmCommand("killed_at_rename", "*/unet.pt", "2", *command(tmp_path), variables=os.environ).wait(540)
    assert killed.returncode == -signal.SIGKILL
    assert 0 < load_state(tmp_path / "unet.pt") < MINI.unet_steps
    resumed = train(MINI, tmp_path, save_every=3)
    for network, expected in zip(resumed, uninterrupted, strict=True):
        for (name, value), expected_value in zip(
            network.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected_value), name
    assert resumed[0].config.scaling_factor == uninterrupted[0].config.scaling_factor


def test_other_settings_for_the_same_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"recipe\.json.*seed"):
        train(MINI, tmp_path)
    with pytest.raises(ValueError, match="128"):
        Recipe(size=100)
    with pytest.raises(ValueError, match="clean_share"):
        TrainingStage(scenes="leaves", steps=1, batch=1, lr=(1e-3, 0.0), clean_share=1.0)


def test_the_learning_rate_rises_then_holds_then_falls() -> None:
    stage = TrainingStage(scenes="leaves", steps=10, batch=1, lr=(1.0, 0.2), warmup=2, hold=4)
    rates = [stage.learning_rate(step) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(rates[7], 0.6)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert stage_at(MINI.stages, 8) == (MINI.stages[1], 0)
    with pytest.raises(ValueError, match="18"):
        stage_at(MINI.stages, MINI.unet_steps)


def mean_losses(networks: Networks, scale: float) -> tuple[float, float]:
    """Return the reconstruction error and the attention loss on dead leaves that were not used for training."""
    vae, unet = networks
    images, label_maps = zip(*(generate_leaves(seed, MINI.size) for seed in VALIDATION_SEEDS[:4]), strict=True)
    labels = torch.from_numpy(np.stack([label_map[2::4, 2::4] for label_map in label_maps]).astype(np.int64))
    queries = torch.arange(0, 256, 5).expand(4, -1)
    recorder = RowRecorder().attach(unet)
    recorder.start(queries, 16)
    with torch.no_grad():
        latents = encode_images(vae, images)
        reconstruction_error = F.mse_loss(vae.decode(latents).sample, images_to_tensor(images))
        unet(latents * scale, 300, empty_context(4))
    return float(reconstruction_error), float(attention_loss(recorder, region_targets(labels, queries, 16)).mean())


def test_both_losses_fall(uninterrupted: Networks) -> None:
    vae, unet, _ = build_networks(MINI.seed)
    scale = uninterrupted[0].config.scaling_factor
    before, after = mean_losses((vae, unet), scale), mean_losses(uninterrupted, scale)
    assert after[0] < 0.98 * before[0]
    assert after[1] < 0.9 * before[1]


def test_recording_does_not_change_the_output_and_repeats_coarse_rows() -> None:
    _, unet, _ = build_networks(1)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = unet(latents, 300, empty_context(2)).sample
        recorder = RowRecorder().attach(unet)
        recorder.start(torch.arange(256).expand(2, -1), 16)
        torch.testing.assert_close(unet(latents, 300, empty_context(2)).sample, plain, rtol=0, atol=2e-5)
    assert {side: len(rows) for side, rows in recorder.rows.items()} == {16: 5, 8: 5, 4: 5, 2: 1}
    # All queries are recorded; the queries 0, 1, 16 and 17 lie in one cell of the 8x8 grid and therefore share a row.
    coarse = recorder.rows[8][0]
    assert torch.equal(coarse[:, 0], coarse[:, 17])
    assert not torch.equal(coarse[:, 0], coarse[:, 2])
    torch.testing.assert_close(recorder.aggregate().sum(-1), torch.ones(2, 256))


def test_the_attention_loss_is_zero_only_for_perfect_rows() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[:, :, 8:] = 1
    queries = torch.tensor([[0, 7, 63]])
    target = region_targets(labels, queries, 8)
    assert target[0, 0].view(8, 8)[:, :4].eq(1 / 32).all()
    assert target[0, 1].view(8, 8)[:, 4:].eq(1 / 32).all()
    recorder = RowRecorder(queries=queries, side=8)
    recorder.rows = {8: [target.clone()]}
    assert attention_loss(recorder, target).item() == pytest.approx(0, abs=1e-5)
    recorder.rows = {8: [torch.full_like(target, 1 / 64)]}
    assert attention_loss(recorder, target).item() == pytest.approx(1.3 * np.log(2), rel=1e-5)


def test_a_border_position_belongs_to_each_region_in_part() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, :, 3] = 1
    target = region_targets(labels, torch.tensor([[0]]), 2)
    np.testing.assert_allclose(target[0, 0], np.array([1, 0.5, 1, 0.5]) / 3)
