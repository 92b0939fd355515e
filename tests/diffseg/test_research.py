"""Attention maps, aggregated attention and proposals of an image, and stages of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffseg import Segmenter, aggregated_attention, attention_maps, proposals
from diffseg.attention.aggregate import aggregate
from diffseg.attention.maps import SelfAttention
from diffseg.method.decide import decide
from diffseg.method.signals import Need, Scores, Signals


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter(checkpoints: dict[str, Path]) -> Segmenter:
    return Segmenter.from_pretrained(checkpoints["sd1"], tau=0.05, method="diffseg")


def test_the_maps_of_each_resolution_aggregate_to_the_aggregated_attention(
    segmenter: Segmenter, image: np.ndarray
) -> None:
    maps = attention_maps(segmenter, image)
    assert len(maps) > 1
    for (rows, columns), attention in maps.items():
        assert attention.shape == (rows * columns,) * 2
        np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-4)
    aggregated, grid = aggregated_attention(segmenter, image)
    assert grid == max(maps)
    layers = segmenter.backbone.self_attention(segmenter.prepare(image).pixels[None], segmenter.timestep).layers
    tensors = {size: torch.from_numpy(attention)[None] for size, attention in maps.items()}
    expected, _ = aggregate(SelfAttention(maps=tensors, layers=layers), segmenter.settings.attention.weights)
    np.testing.assert_allclose(aggregated, expected[0], atol=1e-6)


def test_the_highest_proposal_is_the_label(segmenter: Segmenter, image: np.ndarray) -> None:
    scores = proposals(segmenter, image)
    assert (scores >= 0).all()
    winners = len(np.unique(scores.argmax(axis=0)))
    assert 1 < winners <= len(scores)
    segmentation = segmenter(image)
    assert len(segmentation.segments) >= winners
    assert np.array_equal(segmentation.labels, decide(torch.from_numpy(scores), image.shape[:2]).labels)


def test_a_segmenter_of_any_batch_size_returns_one_image(segmenter: Segmenter, image: np.ndarray) -> None:
    batched = Segmenter(segmenter.backbone, segmenter.settings, batch_size=2)
    np.testing.assert_allclose(
        aggregated_attention(batched, image)[0], aggregated_attention(segmenter, image)[0], atol=1e-6
    )


@dataclass(frozen=True)
class LeftAndRight:
    """A stage that proposes the left and the right half."""

    name: str = "halves"
    needs: frozenset[Need] = frozenset()

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        height, width = signals.grid
        left = (torch.arange(width) < width // 2).float().expand(len(signals.pixels), height, width)
        return Scores(maps=torch.stack([left, 1 - left], dim=1))


@dataclass(frozen=True)
class Swap:
    """A stage that reverses the order of the proposals."""

    name: str = "swap"
    needs: frozenset[Need] = frozenset()

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        assert scores is not None
        return replace(scores, maps=scores.maps.flip(1))


def test_stages_of_the_user_replace_or_follow_those_of_the_package(segmenter: Segmenter, image: np.ndarray) -> None:
    halves = Segmenter(segmenter.backbone, segmenter.settings, stages=[LeftAndRight()])
    labels = halves(image).labels
    assert halves.method == ("halves",)
    assert len({*labels[:, :36].ravel()}) == len({*labels[:, 44:].ravel()}) == 1
    assert labels[0, 0] != labels[0, -1]
    swapped = Segmenter(segmenter.backbone, segmenter.settings, stages=[LeftAndRight(), Swap()])(image).labels
    assert (swapped == 1 - labels).mean() > 0.9  # segments are numbered in the order of the proposals
    follows = Segmenter(segmenter.backbone, segmenter.settings, stages=["diffseg", Swap()])
    assert follows.method == ("diffseg", "swap")
    reversed_labels, expected = follows(image).labels, segmenter(image).labels
    assert (reversed_labels.max() - reversed_labels == expected).mean() > 0.9


@dataclass(frozen=True)
class Silent:
    """A stage that returns no scores."""

    name: str = "silent"
    needs: frozenset[Need] = frozenset()

    def run(self, signals: Signals, scores: Scores | None) -> None:
        return None


def test_stages_that_cannot_work_are_refused(segmenter: Segmenter, image: np.ndarray) -> None:
    for stages, message in (
        ([], "no stages"),
        ([object()], "name, needs and run"),
        (["par"], "first stage"),
        ([replace(LeftAndRight(), needs=frozenset({"depth"}))], "'depth'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            Segmenter(segmenter.backbone, segmenter.settings, stages=stages)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no stage returned scores"):
        Segmenter(segmenter.backbone, segmenter.settings, stages=[Silent()])(image)
