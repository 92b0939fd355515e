"""A CLIP that was told what is in pictures, and never where, names their segments (generated, held-out seeds)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import planted
from small_clip import NAMES, SIDE, draw, pixels_of, write_clip, write_trained_clip

from diffseg.method.signals import Scores, Signals
from diffseg.method.stages import stages_of
from diffseg.model.clip import Clip, load_clip
from diffseg.settings import settings_of

PICTURES, HELD_OUT = 60, 1000
CHANCE, MARGIN = 1 / (2 * len(NAMES) - 1), 0.2
"""Mean IoU of names drawn by lot, each as often as any other; and what was to be gained on it, set before training."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    with torch.random.fork_rng(devices=[]):
        return load_clip(write_trained_clip(tmp_path_factory.mktemp("clip") / "trained", steps=150))


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and the index of the colour of each."""
    generator = np.random.default_rng(HELD_OUT)
    drawn = [draw(generator) for _ in range(PICTURES)]
    return pixels_of([image for image, _ in drawn]), torch.from_numpy(np.stack([truth for _, truth in drawn]))


def mean_iou(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Over all pictures at once, without any matching."""
    both = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in range(len(NAMES))]
    return torch.stack(both).mean().item()


def pixel_names(maps: torch.Tensor) -> torch.Tensor:
    return F.interpolate(maps, SIDE, mode="bilinear").argmax(dim=1)


def segment_names(clip: Clip, pixels: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The name of each true segment, at its pixels."""
    regions = F.one_hot(truth, len(NAMES)).permute(0, 3, 1, 2).float()
    given = Signals(
        pixels=pixels,
        grid=(SIDE, SIDE),
        self_attention=torch.empty(0),
        finite=torch.ones(len(pixels), dtype=torch.bool),
        clip_probabilities=clip.probabilities(pixels, [NAMES] * len(pixels)),
        name_counts=torch.full((len(pixels),), len(NAMES)),
    )
    (stage,) = stages_of(["clip"], settings_of(clip_smooth=False), (1.0,))
    named = stage.run(given, Scores(maps=regions))
    assert named is not None
    assert named.names is not None
    return named.names.gather(1, truth.flatten(1)).view_as(truth)


def test_names_are_found_without_having_been_shown_where(
    trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Far above chance, which random weights are at; segments, whose names their positions vote on, above positions."""
    pixels, truth = pictures
    by_pixel = mean_iou(pixel_names(trained.probabilities(pixels, [NAMES] * PICTURES)), truth)
    by_segment = mean_iou(segment_names(trained, pixels, truth), truth)
    untrained = load_clip(write_clip(tmp_path_factory.mktemp("clip") / "random"))
    control = mean_iou(pixel_names(untrained.probabilities(pixels, [NAMES] * PICTURES)), truth)
    print(f"mean IoU of names: pixels {by_pixel:.3f}, segments {by_segment:.3f}, random weights {control:.3f}")
    assert by_pixel > CHANCE + MARGIN
    assert by_segment >= by_pixel
    assert by_pixel > control + MARGIN


def test_smoothing_by_attention_that_knows_the_segments_helps(
    trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, truth = pictures[0][:12], pictures[1][:12]
    coarse = truth[:, 2::4, 2::4]
    attention = torch.stack([torch.from_numpy(planted(m.numpy(), leak=0.1, noise=0.5)).float() for m in coarse])
    maps = trained.probabilities(pixels, [NAMES] * 12)
    given = Signals(
        pixels=pixels,
        grid=(coarse.shape[1], coarse.shape[2]),
        self_attention=attention,
        finite=torch.ones(12, dtype=torch.bool),
        clip_probabilities=maps,
        name_counts=torch.full((12,), len(NAMES)),
    )
    found = {}
    for smooth in (False, True):
        (stage,) = stages_of(["clip"], settings_of(clip_smooth=smooth), (1.0,))
        classes = stage.run(given, None)
        assert classes is not None
        found[smooth] = mean_iou(classes.maps.argmax(dim=1), coarse)
    print(f"mean IoU of classes: {found[False]:.3f}, smoothed by planted attention {found[True]:.3f}")
    assert found[True] > found[False]


def test_the_names_of_an_image_bound_what_is_found(trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Image-level labels: what is not in the picture is not found, and what is in it is found better."""
    pixels, truth = pictures
    present = [image.unique() for image in truth]
    maps = trained.probabilities(pixels, [[NAMES[k] for k in there] for there in present])
    found = torch.stack([there[index] for there, index in zip(present, pixel_names(maps), strict=True)])
    every = pixel_names(trained.probabilities(pixels, [NAMES] * PICTURES))
    assert mean_iou(found, truth) > mean_iou(every, truth) + 0.05
