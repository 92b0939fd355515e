"""Labels, boxes, areas and confidence agree with element-wise computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import same_partition
from references import upsample_by_elements

from diffseg.method import decide as decisions
from diffseg.method.decide import Region, decide, decide_images, decide_on_device
from diffseg.method.decision import MARGIN_UNIT, Decision, Stat
from diffseg.segmentation import IGNORE, Box, Segmentation


def random_scores(count: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def check_against_elements(segmentation: Segmentation, scores: torch.Tensor, box: Box | None = None) -> None:
    """Compare the labelled rectangle with scores that are upsampled in float64."""
    inside = np.argwhere(segmentation.labels != IGNORE)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
    size = (bottom - top, right - left)
    shown = None if box is None else (box.top, box.left, box.bottom, box.right)
    fine = np.sort(upsample_by_elements(scores.numpy(), size, shown), axis=0)
    best = upsample_by_elements(scores.numpy(), size, shown).argmax(axis=0)
    second = fine[-2] if len(fine) > 1 else np.zeros(size)
    margin = (fine[-1] - second) / fine[-1]
    clear = margin > 1e-5  # with a smaller margin, float32 may choose another proposal
    assert clear.mean() > 0.99
    labels = segmentation.labels[top:bottom, left:right]
    assert same_partition(labels[clear], best[clear])
    assert np.array_equal(np.unique(labels), np.arange(len(segmentation.segments)))
    assert [segment.id for segment in segmentation.segments] == [*range(len(segmentation.segments))]
    for segment in segmentation.segments:
        where = segmentation.labels == segment.id
        rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
        assert segment.area == where.sum()
        assert segment.bbox == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert segment.confidence == pytest.approx(margin[where[top:bottom, left:right]].mean(), abs=1e-4)
    assert segmentation.confidence == pytest.approx(margin.mean(), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 5)])
@pytest.mark.parametrize("size", [(64, 64), (37, 101), (3, 5), (1, 1), (200, 1)])
def test_it_agrees_with_elements(count: int, grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = random_scores(count, grid)
    segmentation = decide(scores, size)
    assert segmentation.labels.shape == size
    assert segmentation.labels.dtype == np.uint16
    check_against_elements(segmentation, scores)


@pytest.mark.parametrize("size", [(64, 64), (40, 96), (13, 7)])
def test_it_agrees_with_interpolate_and_argmax(size: tuple[int, int]) -> None:
    scores = random_scores(9, (8, 8))
    fine = F.interpolate(scores[None].double(), size, mode="bilinear", align_corners=False)[0]
    present, expected = np.unique(fine.argmax(dim=0).numpy(), return_inverse=True)
    segmentation = decide(scores, size)
    assert np.array_equal(segmentation.labels, expected.reshape(size)), "numbered in the order of the proposals"
    assert len(segmentation.segments) == len(present)


def test_a_proposal_without_pixels_gets_no_label() -> None:
    scores = random_scores(3, (4, 4))
    scores[1] = 0
    segmentation = decide(scores, (32, 32))
    assert np.unique(segmentation.labels).tolist() == [0, 1]
    check_against_elements(segmentation, scores[[0, 2]])


def test_a_tie_goes_to_the_first_proposal_with_confidence_0() -> None:
    same = random_scores(1, (4, 4)).expand(5, -1, -1)
    segmentation = decide(same, (16, 16))
    assert not segmentation.labels.any()
    assert segmentation.confidence == 0
    swapped = torch.stack([torch.zeros(4, 4), torch.ones(4, 4), torch.ones(4, 4)])
    assert decide(swapped, (8, 8)).segments[0].area == 64
    assert decide_on_device(swapped, (8, 8)).stats[0].tolist() == [0, 64, 0]


def test_scores_of_0_have_confidence_0() -> None:
    assert decide(torch.zeros(3, 4, 4), (8, 8)).confidence == 0
    assert decide(torch.zeros(1, 4, 4), (8, 8)).confidence == 0


def test_a_single_segment_has_confidence_1() -> None:
    segmentation = decide(random_scores(1, (4, 4)) + 0.1, (10, 12))
    assert segmentation.confidence == 1
    assert segmentation.segments[0].area == 120
    assert segmentation.segments[0].bbox == (0, 0, 12, 10)


def test_more_segments_than_fit_in_a_byte() -> None:
    scores = torch.eye(400).view(400, 20, 20)
    segmentation = decide(scores, (160, 160))
    assert len(segmentation.segments) == 400
    assert np.array_equal(segmentation.labels[4::8, 4::8], np.arange(400).reshape(20, 20))
    assert sum(segment.area for segment in segmentation.segments) == 160 * 160


def test_pixels_outside_a_crop_are_ignored() -> None:
    scores = random_scores(4, (8, 8))
    segmentation = decide(scores, (48, 80), region=Box(top=0, left=16, bottom=48, right=64))
    labelled = segmentation.labels != IGNORE
    assert labelled[:, 16:64].all()
    assert not labelled[:, :16].any()
    assert not labelled[:, 64:].any()
    check_against_elements(segmentation, scores)


@pytest.mark.parametrize(
    "box", [Box(top=2, left=0, bottom=6, right=8), Box(top=0, left=2.5, bottom=8, right=5.25)], ids=["wide", "tall"]
)
def test_only_the_content_of_the_grid_is_used(box: Box) -> None:
    scores = random_scores(5, (8, 8))
    segmentation = decide(scores, (40, 56), content=box)
    assert (segmentation.labels != IGNORE).all()
    check_against_elements(segmentation, scores, box)


def test_part_of_the_grid_labels_part_of_the_image() -> None:
    scores, box = random_scores(5, (8, 8)), Box(top=1, left=2, bottom=7, right=8)
    segmentation = decide(scores, (40, 56), content=box, region=Box(top=3, left=5, bottom=33, right=47))
    assert (segmentation.labels != IGNORE).sum() == 30 * 42
    check_against_elements(segmentation, scores, box)


def batch_of_three() -> torch.Tensor:
    """Return scores of five proposals, which give different numbers of segments."""
    scores = torch.stack([random_scores(5, (8, 6), seed) for seed in range(3)])
    scores[0, 1] = scores[2, :4] = 0
    return scores


REGIONS = [
    Region((37, 50), Box(top=1, left=0.5, bottom=7, right=6)),
    Region((20, 31), Box(top=0, left=0, bottom=8, right=6)),
    Region((37, 50), Box(top=1, left=0.5, bottom=7, right=6)),
]


def check_decision(decision: Decision, expected: Decision) -> None:
    """Compare with a decision that was made by sums in another order."""
    assert torch.equal(decision.labels, expected.labels)
    assert torch.equal(decision.stats[Stat.AREA], expected.stats[Stat.AREA])
    present = expected.stats[Stat.AREA] > 0
    extent = slice(Stat.AREA, Stat.MARGIN)
    assert torch.equal(decision.stats[extent, present], expected.stats[extent, present])
    sums = decision.stats[Stat.MARGIN].double(), expected.stats[Stat.MARGIN].double()
    torch.testing.assert_close(*sums, rtol=1e-4, atol=100)
    if expected.margins is not None:
        assert decision.margins is not None
        torch.testing.assert_close(decision.margins.int(), expected.margins.int(), atol=1, rtol=0)


@pytest.mark.parametrize("elements", [2**10, 2**20], ids=["stripes", "whole"])
@pytest.mark.parametrize("keep_margins", [False, True])
def test_each_image_of_a_batch_is_decided_as_if_alone(
    elements: int, keep_margins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "STRIPE_ELEMENTS", elements)
    scores = batch_of_three()
    together = decide_images(scores, REGIONS, keep_margins=keep_margins)
    for image, (decision, region) in enumerate(zip(together, REGIONS, strict=True)):
        (alone,) = decide_images(scores[image : image + 1], [region], keep_margins=keep_margins)
        assert (alone.margins is not None) == keep_margins
        check_decision(decision, alone)


def test_images_beyond_the_regions_are_padding() -> None:
    first, second = decide_images(batch_of_three(), REGIONS[:2]), decide_images(batch_of_three(), REGIONS)
    assert len(first) == 2
    for decision, expected in zip(first, second[:2], strict=True):
        check_decision(decision, expected)


def test_names_are_the_last_statistics() -> None:
    names = torch.arange(15).view(3, 5), torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    plain = decide_images(batch_of_three(), REGIONS[:2])
    for image, decision in enumerate(decide_images(batch_of_three(), REGIONS[:2], names=names)):
        assert torch.equal(decision.stats[: Stat.NAME], plain[image].stats)
        assert torch.equal(decision.stats[Stat.NAME], names[0][image])
        torch.testing.assert_close(decision.stats[Stat.NAME_SCORE] / MARGIN_UNIT, names[1][image], atol=1e-7, rtol=0)


KERNEL_CASES = {
    "several sizes": (batch_of_three(), REGIONS),
    "more pixels than a program has": (
        random_scores(2, (3, 4))[None],
        [Region((30, 50), Box(top=0, left=0, bottom=3, right=4))],
    ),
    "one proposal, one row": (random_scores(1, (1, 5))[None], [Region((6, 7), Box(top=0, left=0, bottom=1, right=5))]),
    "one pixel": (random_scores(3, (4, 4))[None], [Region((1, 1), Box(top=0, left=0, bottom=4, right=4))]),
    "ties": (torch.ones(1, 3, 4, 4), [Region((5, 6), Box(top=0, left=0, bottom=4, right=4))]),
    "zeros": (torch.zeros(1, 3, 4, 4), [Region((5, 6), Box(top=0, left=0, bottom=4, right=4))]),
}


@pytest.mark.parametrize("keep_margins", [False, True])
@pytest.mark.parametrize("case", KERNEL_CASES)
def test_the_kernels_decide_as_torch_does(case: str, keep_margins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles the kernels on a GPU; elsewhere conftest.py makes it interpret them."""
    pytest.importorskip("triton")
    scores, regions = KERNEL_CASES[case]
    expected = decide_images(scores, regions, keep_margins=keep_margins)
    monkeypatch.setattr(decisions, "runs_kernels", lambda device: True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decided = decide_images(scores.to(device), regions, keep_margins=keep_margins)
    for decision, of_torch in zip(decided, expected, strict=True):
        margins = None if decision.margins is None else decision.margins.cpu()
        on_host = Decision(labels=decision.labels.cpu(), stats=decision.stats.cpu(), margins=margins)
        assert (margins is not None) == keep_margins
        check_decision(on_host, of_torch)


@pytest.mark.parametrize("elements", [1, 777, 2**23])
def test_the_size_of_stripes_makes_no_difference(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(6, (8, 8))
    whole = decide(scores, (61, 45))
    monkeypatch.setattr(decisions, "STRIPE_ELEMENTS", elements)
    striped = decide(scores, (61, 45))
    assert np.array_equal(striped.labels, whole.labels)
    assert [s.confidence for s in striped.segments] == pytest.approx([s.confidence for s in whole.segments], abs=1e-6)


def test_one_stripe_is_upsampled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    best_and_margin = decisions._best_and_margin

    def recorded(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(tuple(scores.shape))
        return best_and_margin(scores)

    monkeypatch.setattr(decisions, "_best_and_margin", recorded)
    monkeypatch.setattr(decisions, "STRIPE_ELEMENTS", 6 * 45 * 10)
    decide(random_scores(6, (8, 8)), (61, 45))
    assert shapes == 6 * [(10, 6, 45)] + [(1, 6, 45)]


def test_boxes_and_areas_of_scattered_pixels() -> None:
    labels = np.zeros((5, 7), dtype=np.int64)
    labels[1, 5] = labels[3, 2] = 1
    labels[4, 6] = 2
    segmentation = decide(torch.from_numpy(np.eye(3, dtype=np.float32)[labels]).permute(2, 0, 1), (5, 7))
    assert np.array_equal(segmentation.labels, labels)
    assert [(s.area, s.bbox) for s in segmentation.segments] == [
        (32, (0, 0, 7, 5)),
        (2, (2, 1, 4, 3)),
        (1, (6, 4, 1, 1)),
    ]


def test_the_scores_are_not_changed() -> None:
    scores = random_scores(3, (4, 4))
    before = scores.clone()
    decide(scores, (4, 4))
    assert torch.equal(scores, before)
