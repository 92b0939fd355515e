"""A CLIP trained on captions, without any location, names the segments of generated images with held-out seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import permuted_columns, planted
from small_clip import NAMES, SIDE, draw, pixels_of, write_clip, write_trained_clip

from diffseg.clip.clip import Clip, Guide, load_clip
from diffseg.method.clip_guide import guide_of_attention
from diffseg.method.signals import Scores, Signals
from diffseg.method.stages import stage_of
from diffseg.settings import settings_of

PICTURES, HELD_OUT = 60, 1000
CHANCE, MARGIN = 1 / (2 * len(NAMES) - 1), 0.2
"""Mean IoU of random names with equal frequencies, and the gain over it that was required before training."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    with torch.random.fork_rng(devices=[]):
        return load_clip(write_trained_clip(tmp_path_factory.mktemp("clip") / "trained", steps=150))


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and, for each of their pixels, the index of its colour."""
    generator = np.random.default_rng(HELD_OUT)
    drawn = [draw(generator) for _ in range(PICTURES)]
    return pixels_of([image for image, _ in drawn]), torch.from_numpy(np.stack([indices for _, indices in drawn]))


def mean_iou(names: torch.Tensor, ground_truth: torch.Tensor) -> float:
    """Return the mean IoU over names, of all pictures together and without any matching."""
    ious = [
        ((names == k) & (ground_truth == k)).sum() / ((names == k) | (ground_truth == k)).sum()
        for k in range(len(NAMES))
    ]
    return torch.stack(ious).mean().item()


def interval_of_gain(first: torch.Tensor, second: torch.Tensor, ground_truth: torch.Tensor) -> tuple[float, float]:
    """Return the 95 % interval of the gain in mean IoU from the first names to the second: pictures, resampled."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(PICTURES, (200, PICTURES), generator=generator)
    gains = [mean_iou(second[s], ground_truth[s]) - mean_iou(first[s], ground_truth[s]) for s in samples]
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def pixel_names(maps: torch.Tensor) -> torch.Tensor:
    return F.interpolate(maps, SIDE, mode="bilinear").argmax(dim=1)


def segment_names(clip: Clip, pixels: torch.Tensor, ground_truth: torch.Tensor) -> torch.Tensor:
    """Name each segment of the ground truth, and return the name at each pixel."""
    regions = F.one_hot(ground_truth, len(NAMES)).permute(0, 3, 1, 2).float()
    signals = Signals(
        pixels=pixels,
        grid=(SIDE, SIDE),
        self_attention=torch.empty(0),
        finite=torch.ones(len(pixels), dtype=torch.bool),
        clip_probabilities=clip.probabilities(pixels, [NAMES] * len(pixels)),
        name_counts=torch.full((len(pixels),), len(NAMES)),
    )
    stage = stage_of("clip", settings_of(clip_smooth=False), (1.0,))
    scores = stage.run(signals, Scores(maps=regions))
    assert scores is not None
    assert scores.names is not None
    return scores.names.gather(1, ground_truth.flatten(1)).view_as(ground_truth)


def test_names_are_located_without_training_on_locations(
    trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pixels are far above chance and above random weights; segments, by the vote of their positions, above pixels."""
    pixels, ground_truth = pictures
    by_pixel = mean_iou(pixel_names(trained.probabilities(pixels, [NAMES] * PICTURES)), ground_truth)
    by_segment = mean_iou(segment_names(trained, pixels, ground_truth), ground_truth)
    untrained = load_clip(write_clip(tmp_path_factory.mktemp("clip") / "random"))
    control = mean_iou(pixel_names(untrained.probabilities(pixels, [NAMES] * PICTURES)), ground_truth)
    print(f"mean IoU of names: pixels {by_pixel:.3f}, segments {by_segment:.3f}, random weights {control:.3f}")
    assert by_pixel > CHANCE + MARGIN
    assert by_segment >= by_pixel
    assert by_pixel > control + MARGIN


def test_smoothing_by_attention_that_follows_the_segments_helps(
    trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, ground_truth = pictures[0][:12], pictures[1][:12]
    coarse = ground_truth[:, 2::4, 2::4]
    attention = torch.stack([torch.from_numpy(planted(m.numpy(), leak=0.1, noise=0.5)).float() for m in coarse])
    maps = trained.probabilities(pixels, [NAMES] * 12)
    signals = Signals(
        pixels=pixels,
        grid=(coarse.shape[1], coarse.shape[2]),
        self_attention=attention,
        finite=torch.ones(12, dtype=torch.bool),
        clip_probabilities=maps,
        name_counts=torch.full((12,), len(NAMES)),
    )
    scores = {}
    for smooth in (False, True):
        stage = stage_of("clip", settings_of(clip_smooth=smooth), (1.0,))
        classes = stage.run(signals, None)
        assert classes is not None
        scores[smooth] = mean_iou(classes.maps.argmax(dim=1), coarse)
    print(f"mean IoU of classes: {scores[False]:.3f}, smoothed by planted attention {scores[True]:.3f}")
    assert scores[True] > scores[False]


def test_guided_by_attention_that_follows_the_segments_names_are_located(
    trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The values of the last layer keep their meaning when planted attention mixes them, and shuffled attention loses
    the location. Whether guidance beats reading without mixing depends on the CLIP; docs/names.md has measurements."""
    pixels, ground_truth = pictures
    coarse = ground_truth[:, 2::4, 2::4]
    attention = np.stack([planted(m.numpy(), leak=0.1, noise=0.5) for m in coarse])
    names = [pixel_names(trained.probabilities(pixels, [NAMES] * PICTURES))]
    for weights in (attention, permuted_columns(attention)):
        guide = guide_of_attention(torch.from_numpy(weights).float(), shift=1.2, scale=3)
        maps = trained.probabilities(pixels, [NAMES] * PICTURES, guide=Guide(guide, (8, 8)))
        names.append(pixel_names(maps))
    unguided, *ious = (mean_iou(of_pixels, ground_truth) for of_pixels in names)
    low, high = interval_of_gain(names[0], names[1], ground_truth)
    print(f"mean IoU of names guided by planted attention {ious[0]:.3f}, by shuffled attention {ious[1]:.3f}")
    print(f"gain over reading without mixing: {ious[0] - unguided:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
    assert ious[0] > CHANCE + MARGIN
    assert ious[0] > ious[1] + MARGIN


def test_the_names_of_an_image_restrict_its_classes(trained: Clip, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    """With image-level labels, no absent class is predicted, and the classes that are present are predicted better."""
    pixels, ground_truth = pictures
    present = [image.unique() for image in ground_truth]
    maps = trained.probabilities(pixels, [[NAMES[k] for k in indices] for indices in present])
    restricted = torch.stack([indices[name] for indices, name in zip(present, pixel_names(maps), strict=True)])
    unrestricted = pixel_names(trained.probabilities(pixels, [NAMES] * PICTURES))
    assert mean_iou(restricted, ground_truth) > mean_iou(unrestricted, ground_truth) + 0.05
