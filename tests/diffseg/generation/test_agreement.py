"""The threshold of each class is the one at which its raw and its refined map agree best."""

from __future__ import annotations

import numpy as np
import torch

from diffseg.generation.agreement import THRESHOLDS, best_thresholds, refined_class_maps, scale_to_half
from diffseg.method.naming import BACKGROUND_INDEX
from diffseg.method.signals import Scores


def exhaustive(raw: np.ndarray, refined: np.ndarray) -> tuple[float, float]:
    """Compare the masks at every threshold, from the middle outwards."""
    found = (0.0, -1.0)
    for threshold in THRESHOLDS:
        first, second = (((maps - maps.min()) / (maps.max() - maps.min())) >= threshold for maps in (raw, refined))
        of_class = (first & second).sum() / max(1, (first | second).sum())
        of_rest = (~first & ~second).sum() / (~first | ~second).sum()
        mean = (of_class + of_rest) / 2 if of_class else 0.0
        if mean > found[1]:
            found = threshold, mean
    return found


def test_thresholds_are_those_of_an_exhaustive_search() -> None:
    raw, noise = torch.rand(3, 4, 12, 10), torch.rand(3, 4, 12, 10)
    refined = 5 * (0.7 * raw + 0.3 * noise) + 2
    found = best_thresholds(raw, refined)
    assert len(found.thresholds.unique()) > 3
    for image, name in np.ndindex(3, 4):
        threshold, iou = exhaustive(raw[image, name].numpy(), refined[image, name].numpy())
        assert found.thresholds[image, name] == threshold
        assert found.iou[image, name] == iou


def test_of_equally_good_thresholds_the_middle_one_is_chosen() -> None:
    raw = torch.zeros(1, 1, 4, 4)
    raw[..., :2] = 1
    found = best_thresholds(raw, raw)
    assert found.iou.item() == 1
    assert found.thresholds.item() == 0.6


def test_masks_that_have_nothing_in_common_do_not_agree() -> None:
    found = best_thresholds(torch.zeros(1, 1, 4, 4), torch.rand(1, 1, 4, 4))
    assert found.iou.item() == 0


def test_a_class_that_fills_the_image_agrees_with_a_map_that_does() -> None:
    constant = torch.ones(1, 1, 4, 4)
    assert best_thresholds(0.3 * constant, constant).iou.item() == 1
    half = constant.clone()
    half[..., :2] = 0
    assert best_thresholds(half, constant).iou.item() == 0.25  # half of the class, and nothing of the rest


def test_a_mask_of_nearly_everything_does_not_win_by_its_size() -> None:
    """Below .45 each mask leaves out another position; above, each has four of five positions."""
    raw, refined = torch.full((2, 1, 1, 10, 10), 0.45)
    raw[..., 0, 0] = refined[..., 9, 9] = 0
    raw[..., 5, :4] = refined[..., 5, 1:5] = 1
    found = best_thresholds(raw, refined)
    assert found.thresholds.item() > 0.45
    assert found.iou.item() == (3 / 5 + 95 / 97) / 2


def test_classes_of_segments_are_the_union_of_the_segments_with_their_name() -> None:
    maps = torch.tensor([[[1.0, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]]])[None]
    names = torch.tensor([[1, 0, 1, BACKGROUND_INDEX]])
    found = refined_class_maps(Scores(maps=maps, names=names, name_scores=torch.ones(1, 4)), 2)
    assert found.tolist() == [[[[0, 1, 0, 0]], [[1, 0, 1, 0]]]]


def test_scores_of_classes_find_their_place_whatever_their_order() -> None:
    maps = torch.rand(1, 2, 3, 3)
    found = refined_class_maps(Scores(maps=maps, names=torch.tensor([[2, 0]])), 3)
    assert torch.equal(found[0, 2], maps[0, 0])
    assert torch.equal(found[0, 0], maps[0, 1])
    assert not found[0, 1].any()


def test_scaling_keeps_each_map_in_order_and_puts_its_threshold_at_half() -> None:
    maps = torch.linspace(0, 1, 101).view(1, 1, 1, 101).repeat(1, 3, 1, 1)
    thresholds = torch.tensor([[0.42, 0.74, 0.5]], dtype=torch.float64)
    scaled = scale_to_half(Scores(maps=maps, names=torch.arange(3)[None]), thresholds, torch.tensor([2])).maps[0, :, 0]
    for of_class, place in zip(scaled[:2], (42, 74), strict=True):
        torch.testing.assert_close(of_class[[0, place, 100]], torch.tensor([0, 0.5, 1]))
        assert (of_class.diff() > 0).all()
    assert not scaled[2].any()  # the image has two classes
