"""The number of operations that the method sends to a GPU for a batch is bounded, and does not grow with its images."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import torch
from launches import META, SIZES, LaunchCounter, launches_by_step

from diffseg.method.decide import Region, decide_images
from diffseg.segmentation import Box

BOUNDS = {"aggregate": 40, "merge": 110, "refine": 30, "decide": 20, "transfer": 3}
"""Most operations of each step: more than today, but fewer than a loop over images or proposals would take."""


def test_a_batch_of_sixteen_images_of_all_sizes_takes_as_many_operations_as_a_pair() -> None:
    few, many = launches_by_step(2, sizes=SIZES), launches_by_step(16, sizes=SIZES)
    assert many == few
    assert set(many) == set(BOUNDS)
    assert all(many[step] <= bound for step, bound in BOUNDS.items()), many


def test_margins_and_names_take_a_few_operations_more() -> None:
    plain = launches_by_step(4, sizes=SIZES)
    with_margins = launches_by_step(4, sizes=SIZES, min_area=0.01)
    assert with_margins["decide"] <= plain["decide"] + 2
    assert with_margins["transfer"] <= plain["transfer"] + 2


def test_deciding_without_kernels_takes_no_more_operations_for_many_images_of_a_size_than_for_two() -> None:
    region = Region((480, 640), Box(top=0, left=0, bottom=64, right=64))

    def launches(images: int) -> int:
        with LaunchCounter() as counter:
            decide_images(torch.empty(images, 20, 64, 64, device=META), [region] * images)
        return counter.counts.total()

    launches(1)  # keeps the matrices of bilinear interpolation
    assert launches(16) == launches(2) <= 64


def test_the_counter_counts_what_computes_and_not_views() -> None:
    with LaunchCounter() as counter:
        values = torch.empty(4, 6, device=META)
        assert values.view(24)[2:].unflatten(0, (2, 11)).T.shape == (11, 2)
        assert (torch.ones(3) + 1).sum() == 6  # on the CPU
        assert counter.counts.total() == 0
        with counter.step("work"):
            values += 1
            values.reshape(2, 12) @ torch.empty(12, 3, device=META)
        values.flatten().sum()
    assert counter.counts == {"work": 2, "transfer": 1}
