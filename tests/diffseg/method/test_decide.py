"""Labels, boxes, areas and confidence against elements in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import same_partition
from references import upsample_by_elements

from diffseg.method import decide as decisions
from diffseg.method.decide import IGNORE, decide, decide_on_device
from diffseg.segmentation import Box, Segmentation


def random_scores(count: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def check_against_elements(found: Segmentation, scores: torch.Tensor, box: Box | None = None) -> None:
    """Labels, segments and confidence of the labelled rectangle, from scores upsampled in float64."""
    inside = np.argwhere(found.labels != IGNORE)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
    size = (bottom - top, right - left)
    shown = None if box is None else (box.top, box.left, box.bottom, box.right)
    fine = np.sort(upsample_by_elements(scores.numpy(), size, shown), axis=0)
    best = upsample_by_elements(scores.numpy(), size, shown).argmax(axis=0)
    second = fine[-2] if len(fine) > 1 else np.zeros(size)
    margin = (fine[-1] - second) / fine[-1]
    clear = margin > 1e-5  # nearer than that, float32 may choose otherwise
    assert clear.mean() > 0.99
    labels = found.labels[top:bottom, left:right]
    assert same_partition(labels[clear], best[clear])
    assert np.array_equal(np.unique(labels), np.arange(len(found.segments)))
    assert [segment.id for segment in found.segments] == [*range(len(found.segments))]
    for segment in found.segments:
        where = found.labels == segment.id
        rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
        assert segment.area == where.sum()
        assert segment.bbox == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert segment.confidence == pytest.approx(margin[where[top:bottom, left:right]].mean(), abs=1e-4)
    assert found.confidence == pytest.approx(margin.mean(), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 5)])
@pytest.mark.parametrize("size", [(64, 64), (37, 101), (3, 5), (1, 1), (200, 1)])
def test_agrees_with_elements(count: int, grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = random_scores(count, grid)
    found = decide(scores, size)
    assert found.labels.shape == size
    assert found.labels.dtype == np.uint16
    check_against_elements(found, scores)


@pytest.mark.parametrize("size", [(64, 64), (40, 96), (13, 7)])
def test_agrees_with_interpolate_and_argmax(size: tuple[int, int]) -> None:
    scores = random_scores(9, (8, 8))
    fine = F.interpolate(scores[None].double(), size, mode="bilinear", align_corners=False)[0]
    present, expected = np.unique(fine.argmax(dim=0).numpy(), return_inverse=True)
    found = decide(scores, size)
    assert np.array_equal(found.labels, expected.reshape(size)), "numbered in the order of the proposals"
    assert len(found.segments) == len(present)


def test_a_proposal_that_wins_nowhere_gets_no_number() -> None:
    scores = random_scores(3, (4, 4))
    scores[1] = 0
    found = decide(scores, (32, 32))
    assert np.unique(found.labels).tolist() == [0, 1]
    check_against_elements(found, scores[[0, 2]])


def test_ties_go_to_the_first_with_no_confidence() -> None:
    same = random_scores(1, (4, 4)).expand(5, -1, -1)
    found = decide(same, (16, 16))
    assert not found.labels.any()
    assert found.confidence == 0
    swapped = torch.stack([torch.zeros(4, 4), torch.ones(4, 4), torch.ones(4, 4)])
    assert decide(swapped, (8, 8)).segments[0].area == 64
    assert decide_on_device(swapped, (8, 8)).stats[0].tolist() == [0, 64, 0]


def test_nothing_anywhere_is_no_confidence() -> None:
    assert decide(torch.zeros(3, 4, 4), (8, 8)).confidence == 0
    assert decide(torch.zeros(1, 4, 4), (8, 8)).confidence == 0


def test_one_segment_is_certain() -> None:
    found = decide(random_scores(1, (4, 4)) + 0.1, (10, 12))
    assert found.confidence == 1
    assert found.segments[0].area == 120
    assert found.segments[0].bbox == (0, 0, 12, 10)


def test_more_segments_than_a_byte_can_number() -> None:
    scores = torch.eye(400).view(400, 20, 20)
    found = decide(scores, (160, 160))
    assert len(found.segments) == 400
    assert np.array_equal(found.labels[4::8, 4::8], np.arange(400).reshape(20, 20))
    assert sum(segment.area for segment in found.segments) == 160 * 160


def test_outside_of_a_crop_is_ignored() -> None:
    scores = random_scores(4, (8, 8))
    found = decide(scores, (48, 80), region=Box(top=0, left=16, bottom=48, right=64))
    labelled = found.labels != IGNORE
    assert labelled[:, 16:64].all()
    assert not labelled[:, :16].any()
    assert not labelled[:, 64:].any()
    check_against_elements(found, scores)


@pytest.mark.parametrize(
    "box", [Box(top=2, left=0, bottom=6, right=8), Box(top=0, left=2.5, bottom=8, right=5.25)], ids=["wide", "tall"]
)
def test_only_the_part_of_the_grid_that_shows_the_image_counts(box: Box) -> None:
    scores = random_scores(5, (8, 8))
    found = decide(scores, (40, 56), content=box)
    assert (found.labels != IGNORE).all()
    check_against_elements(found, scores, box)


def test_part_of_the_grid_and_part_of_the_image() -> None:
    scores, box = random_scores(5, (8, 8)), Box(top=1, left=2, bottom=7, right=8)
    found = decide(scores, (40, 56), content=box, region=Box(top=3, left=5, bottom=33, right=47))
    assert (found.labels != IGNORE).sum() == 30 * 42
    check_against_elements(found, scores, box)


@pytest.mark.parametrize("elements", [1, 777, 2**23])
def test_stripes_make_no_difference(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(6, (8, 8))
    whole = decide(scores, (61, 45))
    monkeypatch.setattr(decisions, "STRIPE_ELEMENTS", elements)
    striped = decide(scores, (61, 45))
    assert np.array_equal(striped.labels, whole.labels)
    assert [s.confidence for s in striped.segments] == pytest.approx([s.confidence for s in whole.segments], abs=1e-6)


def test_no_more_than_a_stripe_is_upsampled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    best_and_margin = decisions._best_and_margin

    def watched(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(scores.shape))
        return best_and_margin(scores)

    monkeypatch.setattr(decisions, "_best_and_margin", watched)
    monkeypatch.setattr(decisions, "STRIPE_ELEMENTS", 6 * 45 * 10)
    decide(random_scores(6, (8, 8)), (61, 45))
    assert seen == 6 * [(10, 6, 45)] + [(1, 6, 45)]


def test_boxes_and_areas_of_scattered_labels() -> None:
    labels = np.zeros((5, 7), dtype=np.int64)
    labels[1, 5] = labels[3, 2] = 1
    labels[4, 6] = 2
    found = decide(torch.from_numpy(np.eye(3, dtype=np.float32)[labels]).permute(2, 0, 1), (5, 7))
    assert np.array_equal(found.labels, labels)
    assert [(s.area, s.bbox) for s in found.segments] == [(32, (0, 0, 7, 5)), (2, (2, 1, 4, 3)), (1, (6, 4, 1, 1))]


def test_scores_stay_as_they_are() -> None:
    scores = random_scores(3, (4, 4))
    before = scores.clone()
    decide(scores, (4, 4))
    assert torch.equal(scores, before)
