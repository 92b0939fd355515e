"""How far label maps agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffseg import Segmentation


def agreement_of(segmentations: Sequence[Segmentation], others: Sequence[Segmentation]) -> float:
    """Return the share of pixels with equal labels, as a mean over images."""
    pairs = zip(segmentations, others, strict=True)
    return float(np.mean([(one.labels == other.labels).mean() for one, other in pairs]))
