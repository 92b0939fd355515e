"""A CLIP that Stable Diffusion guides, as the stage clip of a Segmenter: its names change, and its masks do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_clip import NAMES, draw, write_clip

from diffseg import Segmenter
from diffseg.clip.clip import load_clip
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint, load_checkpoint
from diffseg.settings import settings_of

GUIDES = ("none", "attention", "features")


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return write_clip(tmp_path_factory.mktemp("clip") / "random")


def segmenter(tiny: Checkpoint, folder: Path, batch_size: int = 1, **settings: Any) -> Segmenter:
    clip, fast = load_clip(folder), {"resolution": 64, "anchors_per_side": 4}
    return Segmenter(Backbone(tiny), settings_of(**fast, **settings), batch_size=batch_size, naming=True, clip=clip)


def test_a_guide_changes_the_scores_of_names_and_no_mask(tiny: Checkpoint, folder: Path) -> None:
    picture = draw(np.random.default_rng(0))[0]
    results = {guide: segmenter(tiny, folder, clip_guide=guide)(picture, names=NAMES) for guide in GUIDES}
    scores = {guide: [segment.name_score for segment in result.segments] for guide, result in results.items()}
    for guide in GUIDES[1:]:
        assert np.array_equal(results[guide].labels, results["none"].labels)
        assert scores[guide] != scores["none"]
        assert all(segment.name in NAMES for segment in results[guide].segments)
    assert scores["attention"] != scores["features"]


@pytest.mark.parametrize("guide", GUIDES[1:])
def test_the_names_of_an_image_do_not_depend_on_how_full_its_batch_is(
    guide: str, tiny: Checkpoint, folder: Path
) -> None:
    generator = np.random.default_rng(0)
    pictures = [draw(generator)[0] for _ in range(2)]
    batches = segmenter(tiny, folder, batch_size=2, clip_guide=guide, clip_window=32)
    together, alone = batches(pictures, names=NAMES)[0], batches(pictures[:1], names=NAMES)[0]
    assert together.segments == alone.segments


def test_features_cannot_be_read_from_compiled_code(tiny: Checkpoint, folder: Path) -> None:
    backbone = Backbone(tiny)
    backbone.compiled = True
    with pytest.raises(ValueError, match="compile and clip_guide=features exclude each other"):
        Segmenter(backbone, settings_of(clip_guide="features"), naming=True, clip=load_clip(folder))
