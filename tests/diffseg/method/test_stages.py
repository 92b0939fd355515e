"""What every stage keeps: finite scores, the same again, each image for itself, nothing changed that was given."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted, voronoi

from diffseg.affinity.affinity import Affinity
from diffseg.attention.maps import CrossAttention
from diffseg.method.stages import Scores, Signals, Stage, stages_of, with_name_scores
from diffseg.settings import NAMING, PROPOSING, SegmenterSettings, StageName, settings_of

SIDE, NAMES = 12, (3, 0, 2)
"""Of the working grid; and how many names each image of the batch has."""

STAGES: dict[StageName, dict[str, Any]] = {
    "diffseg": {},
    "ncut": {},
    "affinity": {},
    "par": {},
    "walk": {},
    "cross": {},
    "clip": {"clip_denoise": 0.1},
}
"""Every stage, with settings that make a small example of it."""


def stage_named(name: StageName, **changes: Any) -> Stage:
    settings = settings_of(**{**STAGES[name], **changes})
    return stages_of([name], settings, (0.5, 0.5, 0.5))[0]


def signals(seed: int = 0) -> Signals:
    """Three images with planted attention, a picture of the regions, and a map for each name."""
    generator = torch.Generator().manual_seed(seed)
    masks = [voronoi(SIDE, 4, seed + image) for image in range(3)]
    attention = torch.stack([torch.from_numpy(planted(mask, leak=0.05, noise=0.2)).float() for mask in masks])
    colours = torch.rand(3, 4, 3, generator=generator) * 2 - 1
    pixels = torch.stack(
        [c[torch.from_numpy(np.kron(m, np.ones((4, 4), int)))] for c, m in zip(colours, masks, strict=True)]
    )
    shown = torch.rand(3, max(NAMES), SIDE // 2, SIDE // 2, generator=generator) / max(NAMES)
    looked = torch.rand(3, max(NAMES), SIDE * SIDE, generator=generator)
    for image, count in enumerate(NAMES):
        looked[image, count:] = shown[image, count:] = 0
    return Signals(
        pixels=pixels.permute(0, 3, 1, 2).contiguous(),
        grid=(SIDE, SIDE),
        attention=attention,
        finite=torch.ones(3, dtype=torch.bool),
        cross=CrossAttention(maps={(SIDE, SIDE): looked}, layers={(SIDE, SIDE): 1}),
        clip=shown,
        name_counts=torch.tensor(NAMES),
        learned=Affinity(grid=(SIDE // 2, SIDE // 2), dense=torch.rand(3, 36, 36, generator=generator)),
    )


def of_image(whole: Signals, image: int) -> Signals:
    assert whole.cross is not None
    assert whole.clip is not None
    assert whole.name_counts is not None
    assert whole.learned is not None
    part = slice(image, image + 1)
    return Signals(
        pixels=whole.pixels[part],
        grid=whole.grid,
        attention=whole.attention[part],
        finite=whole.finite[part],
        cross=whole.cross.of_images(image, image + 1),
        clip=whole.clip[part],
        name_counts=whole.name_counts[part],
        learned=whole.learned.of_images(image, image + 1),
    )


def before(stage: Stage, given: Signals) -> Scores | None:
    """Scores as the stage may find them."""
    return None if stage.name in PROPOSING else stage_named("diffseg").run(given, None)


def tensors(value: Any) -> list[torch.Tensor]:
    parts = [getattr(value, field) for field in value.__dataclass_fields__]
    nested = [list(part.maps.values()) if isinstance(part, CrossAttention) else [part] for part in parts]
    return [part for some in nested for part in some if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("name", STAGES)
def test_invariants(name: StageName) -> None:
    stage, given = stage_named(name), signals()
    scores = before(stage, given)
    kept = copy.deepcopy((given, scores))
    found = stage.run(given, scores)
    if name == "affinity":  # the one that may
        torch.testing.assert_close(given.attention.sum(dim=-1), torch.ones(3, SIDE * SIDE))
        given.attention = kept[0].attention
    assert found is not None
    assert found.maps.dtype == torch.float32
    assert found.maps.ndim == 4
    assert torch.isfinite(found.maps).all()
    assert (found.maps >= 0).all()
    if found.name_scores is not None:
        assert ((found.name_scores >= 0) & (found.name_scores <= 1)).all()
    for now, then in zip((given, scores), kept, strict=True):
        if now is not None:
            assert all(torch.equal(a, b) for a, b in zip(tensors(now), tensors(then), strict=True)), "changed its input"
    again = stage.run(given, scores)
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(again), strict=True)), "differs when run again"


@pytest.mark.parametrize("name", STAGES)
def test_an_image_does_not_depend_on_its_neighbours(name: StageName) -> None:
    stage, given = stage_named(name), signals()
    together = stage.run(given, before(stage, given))
    for image in range(3):
        one = of_image(signals(), image)
        alone = stage.run(one, before(stage, one))
        assert alone is not None
        assert together is not None
        labels, expected = together.maps[image].argmax(dim=0), alone.maps[0].argmax(dim=0)
        if alone.names is None:
            pairs = {(a, b) for a, b in zip(labels.flatten().tolist(), expected.flatten().tolist(), strict=True)}
            assert len(pairs) == len(set(expected.flatten().tolist())) == len(set(labels.flatten().tolist()))
        else:
            assert together.names is not None
            mine, its = together.names[image][labels.flatten()], alone.names[0][expected.flatten()]
            assert torch.equal(mine, its)


@pytest.mark.parametrize("name", [name for name in STAGES if name in NAMING])
def test_a_stage_that_names_finds_classes_where_it_is_the_first(name: StageName) -> None:
    found = stage_named(name).run(signals(), None)
    assert found is not None
    assert found.of_classes
    assert found.maps.shape[:2] == (3, max(NAMES))
    assert (found.maps <= 1).all()
    settled = with_name_scores(found, SegmenterSettings())
    winners = settled.maps.argmax(dim=1)
    assert settled.names is not None
    for image, count in enumerate(NAMES):
        indices = set(settled.names[image][winners[image].flatten()].tolist())
        assert indices <= ({*range(count)} if count else {-2}), "an absent class, or a present one left out"


@pytest.mark.parametrize("name", [name for name in STAGES if name in NAMING])
def test_a_stage_that_names_refuses_to_invent_names(name: StageName) -> None:
    given = signals()
    given.cross = given.clip = given.name_counts = None
    with pytest.raises(ValueError, match=f"stage {name}"):
        stage_named(name).run(given, None)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in (*NAMING, *PROPOSING, "affinity")])
def test_a_stage_that_changes_scores_needs_some(name: StageName) -> None:
    with pytest.raises(ValueError, match=f"stage {name} changes scores"):
        stage_named(name).run(signals(), None)


def test_what_was_learned_takes_the_place_of_attention() -> None:
    given = signals()
    assert given.learned is not None
    mask = voronoi(SIDE // 2, 3, 1).ravel()
    alike = torch.from_numpy(mask[:, None] == mask).float() * 0.98 + 0.01
    given.learned = Affinity(grid=given.learned.grid, dense=alike.expand(3, -1, -1))
    assert stage_named("affinity").run(given, None) is None
    scores = stage_named("diffseg", tau=(0.5, 0.5, 0.5)).run(given, None)
    assert scores is not None
    coarse = scores.maps[0].argmax(dim=0)[::2, ::2].flatten().numpy()
    assert len({*zip(coarse.tolist(), mask.tolist(), strict=True)}) == 3
    given.learned = None
    with pytest.raises(ValueError, match="stage affinity"):
        stage_named("affinity").run(given, None)


def test_the_walk_goes_along_learned_neighbours_where_they_are_given() -> None:
    given = signals()
    walk = stage_named("walk", walk_seeds=1.0)  # all but the surest position of each proposal move
    scores = before(walk, given)
    by_attention = walk.run(given, scores)
    near = {offset: torch.full((3, SIDE - offset[0], SIDE - abs(offset[1])), 1e-9) for offset in ((0, 1), (1, 0))}
    given.learned = Affinity(grid=(SIDE, SIDE), local=near)
    alone = walk.run(given, scores)
    assert scores is not None
    assert by_attention is not None
    assert alone is not None
    torch.testing.assert_close(alone.maps, scores.winning().maps)
    assert (by_attention.maps - alone.maps).abs().max() > 1e-3


def test_names_go_with_their_proposals_when_losers_are_left_out() -> None:
    maps = torch.tensor([[[[0.1, 0.2]], [[0.9, 0.1]], [[0.2, 0.8]]]])
    scores = Scores(maps=maps, names=torch.tensor([[5, 6, 7]]), name_scores=torch.tensor([[0.5, 0.6, 0.7]]))
    winning = scores.winning()
    assert winning.names is not None
    assert winning.names.tolist() == [[6, 7]]
    twice = Scores(maps=maps.expand(2, -1, -1, -1), names=torch.tensor([[5, 6, 7]] * 2)).winning()
    assert not twice.maps[:, 0].any()
    assert torch.equal(twice.maps[:, 1:], maps.expand(2, -1, -1, -1)[:, 1:])
