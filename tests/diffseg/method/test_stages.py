"""What holds for every stage: finite scores, the same result twice, no influence of other images, unchanged inputs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted, voronoi

from diffseg.affinity.affinity import Affinity
from diffseg.attention.maps import CrossAttention
from diffseg.component_settings import SegmentNameSettings
from diffseg.method.name_stages import classes_to_segments
from diffseg.method.signals import Scores, Signals
from diffseg.method.stages import Stage, stage_of
from diffseg.settings import NAMING, PROPOSING, StageName, settings_of
from diffseg.variants.record import VariantResponse

SIDE = 12
"""Side of the working grid, in tokens."""

NAME_COUNTS = (3, 0, 2)
"""Number of names of each image of the batch."""

STAGES: dict[StageName, dict[str, Any]] = {
    "diffseg": {},
    "ncut": {},
    "covariance": {"covariance_segments": 4},
    "affinity": {},
    "par": {},
    "walk": {},
    "cross": {},
    "clip": {"clip_denoise": 0.1},
    "references": {},
}
"""Every stage, with settings for a small example of it."""


def stage_named(name: StageName, **changes: Any) -> Stage:
    settings = settings_of(**{**STAGES[name], **changes})
    return stage_of(name, settings, (0.5, 0.5, 0.5))


def example_signals(seed: int = 0) -> Signals:
    """Return signals of three images: planted attention, pixels that show its regions, and a map for each name."""
    generator = torch.Generator().manual_seed(seed)
    masks = [voronoi(SIDE, 4, seed + image) for image in range(3)]
    attention = torch.stack([torch.from_numpy(planted(mask, leak=0.05, noise=0.2)).float() for mask in masks])
    colours = torch.rand(3, 4, 3, generator=generator) * 2 - 1
    pixels = torch.stack(
        [c[torch.from_numpy(np.kron(m, np.ones((4, 4), int)))] for c, m in zip(colours, masks, strict=True)]
    )
    probabilities = torch.rand(3, max(NAME_COUNTS), SIDE // 2, SIDE // 2, generator=generator) / max(NAME_COUNTS)
    name_maps = torch.rand(3, max(NAME_COUNTS), SIDE * SIDE, generator=generator)
    regions = torch.stack([torch.from_numpy(mask).flatten() for mask in masks])
    responses = torch.randn(3, 4, 24, generator=generator)[torch.arange(3)[:, None], regions]
    responses += 0.5 * torch.randn(responses.shape, generator=generator)
    for image, count in enumerate(NAME_COUNTS):
        name_maps[image, count:] = probabilities[image, count:] = 0
    return Signals(
        pixels=pixels.permute(0, 3, 1, 2).contiguous(),
        grid=(SIDE, SIDE),
        self_attention=attention,
        finite=torch.ones(3, dtype=torch.bool),
        cross_attention=CrossAttention(maps={(SIDE, SIDE): name_maps}, layers={(SIDE, SIDE): 1}),
        clip_probabilities=probabilities,
        name_counts=torch.tensor(NAME_COUNTS),
        reference_maps=probabilities.clone(),
        affinity=Affinity(grid=(SIDE // 2, SIDE // 2), dense=torch.rand(3, 36, 36, generator=generator)),
        variants=VariantResponse(
            units=torch.nn.functional.normalize(responses, dim=2),
            grid=(SIDE, SIDE),
            finite=torch.ones(3, dtype=torch.bool),
        ),
    )


def scores_before(stage: Stage, signals: Signals) -> Scores | None:
    """Return scores as the stage may get them: None for a stage that proposes segments."""
    return None if stage.name in PROPOSING else stage_named("diffseg").run(signals, None)


def tensors(record: Any) -> list[torch.Tensor]:
    values = [getattr(record, field) for field in record.__dataclass_fields__]
    nested = [list(value.maps.values()) if isinstance(value, CrossAttention) else [value] for value in values]
    return [value for group in nested for value in group if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", STAGES)
def test_invariants(name: StageName) -> None:
    stage, signals = stage_named(name), example_signals()
    scores = scores_before(stage, signals)
    copies = copy.deepcopy((signals, scores))
    result = stage.run(signals, scores)
    if name == "affinity":  # the only stage that may change its input
        torch.testing.assert_close(signals.self_attention.sum(dim=-1), torch.ones(3, SIDE * SIDE))
        signals.self_attention = copies[0].self_attention
    assert result is not None
    assert result.maps.dtype == torch.float32
    assert result.maps.ndim == 4
    assert torch.isfinite(result.maps).all()
    assert (result.maps >= 0).all()
    if result.name_scores is not None:
        assert ((result.name_scores >= 0) & (result.name_scores <= 1)).all()
    for after, before in zip((signals, scores), copies, strict=True):
        if after is not None:
            pairs = zip(tensors(after), tensors(before), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "the stage changed its input"
    again = stage.run(signals, scores)
    assert again is not None
    pairs = zip(tensors(result), tensors(again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "a second run gave another result"


@pytest.mark.parametrize("name", STAGES)
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: StageName) -> None:
    stage, signals = stage_named(name), example_signals()
    together = stage.run(signals, scores_before(stage, signals))
    for image in range(3):
        of_image = example_signals().of_images(image, image + 1)
        alone = stage.run(of_image, scores_before(stage, of_image))
        assert alone is not None
        assert together is not None
        labels, expected = together.maps[image].argmax(dim=0), alone.maps[0].argmax(dim=0)
        if alone.names is None:
            pairs = {(a, b) for a, b in zip(labels.flatten().tolist(), expected.flatten().tolist(), strict=True)}
            assert len(pairs) == len(set(expected.flatten().tolist())) == len(set(labels.flatten().tolist()))
        else:
            assert together.names is not None
            assert torch.equal(together.names[image][labels.flatten()], alone.names[0][expected.flatten()])


@pytest.mark.parametrize("name", [name for name in STAGES if name in NAMING])
def test_a_naming_stage_proposes_classes_if_it_is_the_first(name: StageName) -> None:
    classes = stage_named(name).run(example_signals(), None)
    assert classes is not None
    assert classes.of_classes
    assert classes.maps.shape[:2] == (3, max(NAME_COUNTS))
    assert (classes.maps <= 1).all()
    segments = classes_to_segments(classes, SegmentNameSettings())
    winners = segments.maps.argmax(dim=1)
    assert segments.names is not None
    for image, count in enumerate(NAME_COUNTS):
        indices = set(segments.names[image][winners[image].flatten()].tolist())
        assert indices <= ({*range(count)} if count else {-2}), "a class without a name wins, or background wins"


@pytest.mark.parametrize("name", [name for name in STAGES if name in NAMING])
def test_a_naming_stage_without_names_is_refused(name: StageName) -> None:
    signals = example_signals()
    signals.cross_attention = signals.clip_probabilities = signals.name_counts = signals.reference_maps = None
    with pytest.raises(ValueError, match=f"stage {name}"):
        stage_named(name).run(signals, None)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in (*NAMING, *PROPOSING, "affinity")])
def test_a_stage_that_changes_scores_needs_some(name: StageName) -> None:
    with pytest.raises(ValueError, match=f"stage {name} changes scores"):
        stage_named(name).run(example_signals(), None)


def test_learned_affinity_replaces_the_attention() -> None:
    signals = example_signals()
    assert signals.affinity is not None
    mask = voronoi(SIDE // 2, 3, 1).ravel()
    same_region = torch.from_numpy(mask[:, None] == mask).float() * 0.98 + 0.01
    signals.affinity = Affinity(grid=signals.affinity.grid, dense=same_region.expand(3, -1, -1))
    assert stage_named("affinity").run(signals, None) is None
    scores = stage_named("diffseg", tau=(0.5, 0.5, 0.5)).run(signals, None)
    assert scores is not None
    coarse = scores.maps[0].argmax(dim=0)[::2, ::2].flatten().numpy()
    assert len({*zip(coarse.tolist(), mask.tolist(), strict=True)}) == 3
    signals.affinity = None
    with pytest.raises(ValueError, match="stage affinity"):
        stage_named("affinity").run(signals, None)


def test_the_walk_follows_learned_affinity_of_neighbours_if_it_is_given() -> None:
    signals = example_signals()
    walk = stage_named("walk", walk_seeds=1.0)  # all positions move but the most confident one of each proposal
    scores = scores_before(walk, signals)
    by_attention = walk.run(signals, scores)
    weak = {offset: torch.full((3, SIDE - offset[0], SIDE - abs(offset[1])), 1e-9) for offset in ((0, 1), (1, 0))}
    signals.affinity = Affinity(grid=(SIDE, SIDE), local=weak)
    by_affinity = walk.run(signals, scores)
    assert scores is not None
    assert by_attention is not None
    assert by_affinity is not None
    torch.testing.assert_close(by_affinity.maps, scores.winning().maps)
    assert (by_attention.maps - by_affinity.maps).abs().max() > 1e-3


def test_names_stay_with_their_proposals_when_losing_proposals_are_dropped() -> None:
    maps = torch.tensor([[[[0.1, 0.2]], [[0.9, 0.1]], [[0.2, 0.8]]]])
    scores = Scores(maps=maps, names=torch.tensor([[5, 6, 7]]), name_scores=torch.tensor([[0.5, 0.6, 0.7]]))
    winning = scores.winning()
    assert winning.names is not None
    assert winning.names.tolist() == [[6, 7]]
    twice = Scores(maps=maps.expand(2, -1, -1, -1), names=torch.tensor([[5, 6, 7]] * 2)).winning()
    assert not twice.maps[:, 0].any()
    assert torch.equal(twice.maps[:, 1:], maps.expand(2, -1, -1, -1)[:, 1:])
