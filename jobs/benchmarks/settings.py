"""(d): what each setting that may improve segments costs, beside the same pass without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from diffseg import Segmenter
from diffseg.backbone import Backbone
from diffseg.checkpoint import Checkpoint
from diffseg.settings import Distance, SegmenterSettings
from jobs.benchmarks.measure import Comparison, alternate

PLAIN = SegmenterSettings(method=("diffseg",))
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "method diffseg,par": {"method": ("diffseg", "par")},
    "min_area .001": {"min_area": 0.001},
    "flip": {"flip": True},
    "crops 2": {"crops": 2},
    "stable": {"stable": True},
    "method ncut": {"method": ("ncut",)},
    "method ncut, stable": {"method": ("ncut",), "stable": True},
    **{f"distance {name}": {"distance": name} for name in get_args(Distance) if name != PLAIN.distance},
}


def measure_settings(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """Images, uint8 [H, W, 3] each, one at a time to label maps, with each setting in turn. notes: segments found."""
    backbone = Backbone(checkpoint)
    segmenters = {"plain": Segmenter(backbone, PLAIN)} | {
        name: Segmenter(backbone, dataclasses.replace(PLAIN, **changed)) for name, changed in VARIANTS.items()
    }
    found: dict[str, float] = {}

    def labelling(name: str) -> Callable[[], None]:
        def run() -> None:
            results = segmenters[name]([*images])
            found[name] = round(float(np.mean([len(result.segments) for result in results])), 1)

        return run

    seconds = alternate({name: labelling(name) for name in segmenters}, repetitions)
    return Comparison(
        part="settings",
        case=f"{checkpoint.name}, {segmenters['plain'].resolution} px",
        seconds=seconds,
        baseline="plain",
        per=len(images),
        notes={"segments": found},
    )
