"""Names of segments and maps of classes, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffseg.method.decide import decide_on_device
from diffseg.method.decision import Stat
from diffseg.method.naming import (
    BACKGROUND_INDEX,
    NO_NAME,
    add_background,
    apply_thresholds,
    class_maps,
    name_of,
    vote_names,
)

HALVES = torch.zeros(1, 3, 4, 4)
HALVES[0, 0, :, :2], HALVES[0, 1, :, 2:] = 1.0, 1.0
"""Two segments, left and right, and a proposal that wins nowhere."""


def of_halves(*pairs: tuple[float, float]) -> torch.Tensor:
    """Return maps [1, T, 2, 2] from each name's value in the left and in the right half."""
    return torch.tensor([[[[left, right]] * 2 for left, right in pairs]])


def test_the_name_with_the_larger_share_wins_with_a_score_relative_to_its_best_segment() -> None:
    names, scores = vote_names(HALVES, of_halves((0.3, 0.1), (0.1, 0.4)), torch.tensor([2]), "share")
    assert names[0, :2].tolist() == [0, 1]
    assert scores[0, :2].tolist() == pytest.approx([0.75, 0.8])


def test_a_single_name_is_distinguished_from_its_surroundings_by_strength() -> None:
    names, scores = vote_names(HALVES, of_halves((0.4, 0.1)), torch.tensor([1]), "share")
    assert names[0, :2].tolist() == [0, 0]
    assert scores[0, :2].tolist() == pytest.approx([1, 0.25])
    assert apply_thresholds(names, scores, 0.3, 0.6)[0, :2].tolist() == [0, BACKGROUND_INDEX]
    assert apply_thresholds(names, scores, 0.2, 0.6)[0, :2].tolist() == [0, NO_NAME]


def test_a_weak_name_can_win_only_if_maps_are_scaled_to_one_norm() -> None:
    maps = of_halves((0.30, 0.29), (0.01, 0.05))
    counts = torch.tensor([2])
    assert vote_names(HALVES, maps, counts, "share")[0][0, :2].tolist() == [0, 0]
    assert vote_names(HALVES, maps, counts, "mean")[0][0, :2].tolist() == [0, 1]


def test_the_mode_counts_positions_not_indices() -> None:
    """For indices 0, 0, 0, 2, 2, 1, 1 the median is 1, which is one of the rarest names; the mode is 0."""
    proposals = torch.ones(1, 1, 1, 7)
    highest = torch.tensor([0, 0, 0, 2, 2, 1, 1])
    maps = torch.nn.functional.one_hot(highest, 3).T.float()[None, :, None]
    names, scores = vote_names(proposals, maps, torch.tensor([3]), "mode")
    assert names.tolist() == [[0]]
    assert scores.item() == pytest.approx(3 / 7)


@pytest.mark.parametrize("vote", ["share", "mean", "mode"])
def test_an_image_without_names_is_background_and_padding_never_wins(vote: str) -> None:
    maps = torch.cat([of_halves((0.0, 0.0), (0.0, 0.0)), of_halves((0.1, 0.2), (0.0, 0.0))])
    names, scores = vote_names(HALVES.expand(2, -1, -1, -1), maps, torch.tensor([0, 1]), vote)  # type: ignore[arg-type]
    assert (names[0] == BACKGROUND_INDEX).all()
    assert not scores[0].any()
    assert names[1, :2].tolist() == [0, 0]


def test_segments_with_fractions_of_positions_are_weighted_by_area() -> None:
    proposals = torch.zeros(1, 2, 2, 4)
    proposals[0, 0, :, :3], proposals[0, 1, :, 3:] = 1.0, 1.0  # the first three columns, and the last one
    share = torch.tensor([[[[1.0, 0.4]], [[0.0, 0.6]]]])
    names, scores = vote_names(proposals, share, torch.tensor([2]), "share")
    assert names.tolist() == [[0, 1]]
    assert scores[0, 0].item() == pytest.approx((2 * 1.0 + 0.4) / 3)


def test_class_maps_are_shares_times_strengths_and_0_for_absent_classes() -> None:
    maps = class_maps(of_halves((0.3, 0.1), (0.3, 0.3), (0.9, 0.9)), torch.tensor([2]))
    share = torch.tensor([[0.2, 1 / 13], [0.2, 3 / 13]])
    strength = torch.tensor([[1.0, 1 / 3], [1.0, 1.0]])
    torch.testing.assert_close(maps[0, :2, 0], share * strength)
    assert not maps[0, 2].any()


def test_background_and_ignored_positions_of_class_maps() -> None:
    maps = torch.tensor([[[[0.9, 0.4, 0.1]], [[0.2, 0.3, 0.2]]]])
    assert add_background(maps, 0.3, 0.5).argmax(dim=1).tolist() == [[[0, 3, 2]]]
    assert add_background(maps, 0.0, 0.0).argmax(dim=1).tolist() == [[[0, 0, 1]]]
    assert add_background(maps[:, :0], 0.0, 0.0).argmax(dim=1).tolist() == [[[0, 0, 0]]]
    assert add_background(torch.zeros(1, 1, 1, 1), 0.0, 0.0).argmax(dim=1).item() == 1


def disc(radius: float, side: int = 64) -> torch.Tensor:
    """Return the share of each cell that a disc in the middle of a grid covers, float32 [side, side]."""
    axis = (torch.arange(side * 8) + 0.5) / 8 - side / 2
    inside = (axis[:, None] ** 2 + axis**2 <= radius**2).float()
    return inside.unflatten(0, (side, 8)).unflatten(2, (side, 8)).mean(dim=(1, 3))


@pytest.mark.parametrize("ignore_below", [0.0, 0.45], ids=["background", "ignored"])
@pytest.mark.parametrize("radius", [20, 8, 4])
def test_a_disc_among_background_keeps_its_area(radius: int, ignore_below: float) -> None:
    scores = 0.9 * disc(radius)[None, None]
    maps = add_background(scores, 0.4 if ignore_below else 0.45, ignore_below)[0]
    decision = decide_on_device(maps, (512, 512))
    area = decision.stats[Stat.AREA, 0].item() / 64  # in tokens
    assert area == pytest.approx(math.pi * radius**2, rel=0.01)
    assert decision.stats[Stat.AREA].sum() == 512 * 512
    thresholded = (scores >= 0.45).sum().item()
    assert abs(thresholded - area) < 4 * radius


@pytest.mark.parametrize(("background_below", "ignore_below"), [(0.4, 0.0), (0.4, 0.6)])
def test_the_margin_of_background_grows_as_the_best_class_falls_below_the_threshold(
    background_below: float, ignore_below: float
) -> None:
    scores = torch.tensor([0.0, 0.1, 0.3, 0.39])
    maps = add_background(scores.view(1, 1, 1, 4), background_below, ignore_below)[0]
    first, second = maps.topk(2, dim=0).values
    margins = ((first - second) / first)[0]
    assert (maps.argmax(dim=0) == 1).all()
    assert (margins.diff() < 0).all()
    assert margins[-1] < 0.05


def test_positions_are_counted_in_the_cells_in_which_their_centres_lie() -> None:
    """64 rows of the working grid, and 37 rows of a CLIP with patches of 14 pixels that reads 518 pixels."""
    rows = torch.zeros(1, 64, 64, 1)
    rows[0, range(64), range(64)] = 1.0  # each row is a segment of its own
    maps = torch.zeros(1, 37, 37, 1)
    maps[0, range(37), range(37)] = 1.0  # and each row of CLIP's grid shows a name of its own
    names, _ = vote_names(rows, maps, torch.tensor([37]), "share")
    centres = (np.arange(64) + 0.5) / 64
    assert names[0].tolist() == np.floor(centres * 37).astype(int).tolist()


def test_indices_are_resolved_to_names() -> None:
    assert [name_of(index, ["cat", "sky"]) for index in (1, BACKGROUND_INDEX, NO_NAME)] == ["sky", "background", None]
