"""Generated images are judged by a network that finds nouns: scores in closed form, and a training that resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from diffseg.tiny.evaluation import generation, judge
from diffseg.tiny.evaluation.generation import MEASURES, GenerationScores, captioned_scenes, generate, score_images
from diffseg.tiny.evaluation.judge import UNSURE, JudgeNetwork, JudgeRecipe, found_nouns, segment, train_judge
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS

MINI = JudgeRecipe(scenes=3, steps=4, batch=2, width=8)


def test_a_noun_is_found_if_it_covers_half_a_percent() -> None:
    classes = np.full((40, 50), UNSURE, np.uint8)
    classes[0, :10] = 3
    classes[1, :9] = 5
    assert found_nouns(classes) == {3}


def test_scores_are_ratios_of_nouns_and_the_share_of_the_area(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.zeros((2, 4, 4), np.uint8)
    maps[0, :2] = 1
    maps[1] = 2
    monkeypatch.setattr(generation, "segment", lambda judge, images: maps)
    scores = score_images(JudgeNetwork(8), [np.zeros((8, 8, 3), np.uint8)] * 2, [(0, 4), (0, 1, 2)])
    # The first image shows 0 and 1, of which its caption names 0; the second shows 2, which its own caption names.
    expected = ((1 + 1) / (2 + 3), (0.5 + 1) / 2, (2 + 0) / (3 + 2), (1 + 0) / (2 + 1))
    assert [scores[name].mean for name in MEASURES] == pytest.approx(expected)


def test_the_judge_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = AutoencoderTiny.from_pretrained(TEXT_CHECKPOINT / "vae", use_safetensors=True).float().eval()
    uninterrupted = train_judge(MINI, vae, tmp_path)
    (tmp_path / "judge.pt").unlink()

    def stop_after_saving(*arguments: object, **parts: object) -> None:
        save(*arguments, **parts)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        save = judge.save_state
        patch.setattr(judge, "save_state", stop_after_saving)
        with pytest.raises(KeyboardInterrupt):
            train_judge(MINI, vae, tmp_path, save_every=2)
    resumed = train_judge(MINI, vae, tmp_path)
    for value, expected in zip(resumed.state_dict().values(), uninterrupted.state_dict().values(), strict=True):
        assert torch.equal(value, expected)
    (classes,) = segment(resumed, [np.zeros((256, 256, 3), np.uint8)])
    assert classes.shape == (64, 64)
    assert set(classes.ravel().tolist()) <= {*range(len(NOUNS)), UNSURE}


def test_images_follow_the_prompts_and_repeat() -> None:
    scenes = captioned_scenes(VALIDATION_SEEDS, 2)
    assert all(scene.caption.classes for scene in scenes)
    settings = GenerationScores(steps=1, batch=2)
    prompts = [scene.caption.text for scene in scenes]
    first, second = (generate(settings, prompts) for _ in range(2))
    assert first[0].shape == (256, 256, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, generate(settings, [prompts[1], prompts[0]]))
