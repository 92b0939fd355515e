"""(d): what each setting that may improve segments costs, beside the same pass without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from diffseg import Segmenter
from diffseg.component_settings import Distance
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from diffseg.settings import settings_of
from jobs.benchmarks.measure import Comparison, alternate

PLAIN = settings_of(method=("diffseg",))
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "method diffseg,par": {"method": ("diffseg", "par")},
    "min_area .001": {"min_area": 0.001},
    "flip": {"flip": True},
    "crops 2": {"crops": 2},
    "stable": {"stable": True},
    "method ncut": {"method": ("ncut",)},
    "method ncut, stable": {"method": ("ncut",), "stable": True},
    **{f"distance {name}": {"distance": name} for name in get_args(Distance) if name != PLAIN.proposals.distance},
}

NAMES = ("sky", "grass", "water", "brick wall", "road", "red ball", "sun", "green bush", "wooden crate", "leopard")
NAMING_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "method diffseg,cross": {"method": ("diffseg", "cross")},
    "method diffseg,walk": {"method": ("diffseg", "walk")},
    "method diffseg,walk,cross": {"method": ("diffseg", "walk", "cross")},
    "method cross,walk": {"method": ("cross", "walk")},
}
TOKENS_64 = 512
"""Pixels of a side that are 64 tokens."""


def measure_settings(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """Images, uint8 [H, W, 3] each, one at a time to label maps, with each setting in turn. notes: segments found."""
    return _measured("settings", checkpoint, images, VARIANTS, names=None, repetitions=repetitions)


def measure_names(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """As `measure_settings`, at 64 x 64 tokens: segments named by cross-attention, of the names of `NAMES`, and walks.

    checkpoint: with its text encoders.
    """
    return _measured("names", checkpoint, images, NAMING_VARIANTS, names=NAMES, repetitions=repetitions)


def _measured(
    part: str,
    checkpoint: Checkpoint,
    images: Sequence[np.ndarray],
    variants: Mapping[str, Mapping[str, Any]],
    *,
    names: Sequence[str] | None,
    repetitions: int,
) -> Comparison:
    backbone = Backbone(checkpoint)
    plain = PLAIN if names is None else PLAIN.with_values(resolution=TOKENS_64)
    segmenters = {"plain": Segmenter(backbone, plain)} | {
        name: Segmenter(backbone, plain.with_values(**changed)) for name, changed in variants.items()
    }
    found: dict[str, float] = {}

    def labelling(name: str) -> Callable[[], None]:
        def run() -> None:
            results = segmenters[name]([*images], names=names)
            found[name] = round(float(np.mean([len(result.segments) for result in results])), 1)

        return run

    seconds = alternate({name: labelling(name) for name in segmenters}, repetitions)
    return Comparison(
        part=part,
        case=f"{checkpoint.name}, {segmenters['plain'].resolution} px",
        seconds=seconds,
        baseline="plain",
        per=len(images),
        notes={"segments": found},
    )
