"""The plot of a training."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.training.curves import draw_curves


@pytest.mark.parametrize("steps", [1, 12, 100_000])
@pytest.mark.parametrize("names", [("loss",), ("loss", "same", "other")])
def test_nothing_is_cut_off_at_the_edges_of_the_picture(steps: int, names: tuple[str, ...]) -> None:
    records = [{"step": step, "seconds": 1.0, **dict.fromkeys(names, 0.5)} for step in (1, max(2, steps))]
    pixels = np.asarray(Image.open(io.BytesIO(draw_curves(records, f"trained on segments, {8 * steps:,} images"))))
    for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (edge == 255).all()
