"""What the page needs to show a sample of a run with levels at any of its levels, with a slider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffseg import IGNORE
from diffseg.levels import leaf_map
from pipeline.output.levels import stored_levels
from pipeline.output.rows import decode_mask
from pipeline.report.colours import find_contacts, segment_colours
from pipeline.report.packing import SIDE, packed, reduced

MAX_LEAVES = 254
"""Leaves that a map with a byte for each pixel can number."""


def level_data(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the levels of a labelled row, as `levelSlider` of levels.js expects them; None if it has too many leaves.

    The map has the size of the gallery's picture: 0 for pixels in no segment, k + 1 for leaf k.
    """
    levels = stored_levels(row)
    if not 1 < levels.leaves <= MAX_LEAVES:
        return None
    leaves = leaf_map(levels, decode_mask(row["mask"]))
    small = reduced(np.where(leaves == IGNORE, 0, leaves + 1).astype(np.uint8), SIDE)
    areas = np.bincount(leaves[leaves != IGNORE], minlength=levels.leaves)
    order = (np.argsort(-areas, kind="stable") + 1).tolist()
    colours = segment_colours(order, find_contacts(small))
    return {
        "leaves": packed(small),
        "areas": areas.tolist(),
        "colours": [colours[leaf + 1] for leaf in range(levels.leaves)],
        "confidences": [round(float(value), 3) for value in (*levels.leaf_confidences, *levels.confidences)],
        "pairs": levels.pairs.tolist(),
        "heights": [float(f"{height:.4g}") for height in levels.heights],
        "own": levels.leaves - row["n_segments"],
    }
