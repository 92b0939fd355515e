"""The view of a protocol: crops and nearest pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffseg.scoring.view import View


def test_the_centre_square_starts_where_it_does_in_the_released_code() -> None:
    labels = np.arange(5 * 8).reshape(5, 8)
    assert View(crop="centre").apply(labels).tolist() == labels[:, 1:6].tolist()
    assert View(crop="centre").apply(labels.T).tolist() == labels.T[1:6].tolist()


@pytest.mark.parametrize(("shape", "size", "expected"), [((48, 64), 24, (24, 32)), ((7, 5), 12, (17, 12))])
def test_scaling_takes_the_nearest_pixel_as_pillow_does(
    shape: tuple[int, int], size: int, expected: tuple[int, int]
) -> None:
    labels = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    scaled = View(size=size).apply(labels)
    assert scaled.shape == expected
    pillow = Image.fromarray(labels).resize((expected[1], expected[0]), Image.Resampling.NEAREST)
    assert (scaled == np.asarray(pillow)).all()


def test_the_default_view_changes_nothing() -> None:
    labels = np.eye(4, dtype=np.uint16)
    assert View().apply(labels) is labels
    assert str(View()) == "whole images, own size"
    assert str(View(crop="centre", size=512)) == "centre square, 512 px (nearest)"
    with pytest.raises(ValueError, match="size 0"):
        View(size=0)
