"""Parts settings, names and features: the cost of what may be added to a pass, beside the same pass without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
WORDS = ("sky", "grass", "water", "sand", "snow", "road", "lava", "ball", "sun", "bush", "flag", "star", "leopard")
MANY_NAMES = (*WORDS, *(f"{first} {second}" for first in WORDS for second in WORDS if first != second))[:150]
"""As many names as ADE20K has, most of them of two tokens."""
BESIDE_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    f"{len(MANY_NAMES)} names beside the pass": {"method": ("diffseg", "cross"), "prompt": "empty"},
    f"{len(MANY_NAMES)} names beside the pass, vote goca": {
        "method": ("diffseg", "cross"),
        "prompt": "empty",
        "vote": "goca",
    },
}
TOKENS_64 = 512
"""Side of a model input of 64 x 64 tokens, in pixels."""


def measure_settings(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """Measure label maps of single images with each setting of `VARIANTS`, and without any.

    Args:
        checkpoint: The model.
        images: The images, uint8 [H, W, 3] each.
        repetitions: The number of measured turns.

    Returns:
        The times. Its notes hold the mean number of segments by variant.
    """
    return _measure("settings", checkpoint, images, VARIANTS, names=None, repetitions=repetitions)


def measure_names(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """Measure naming by cross-attention, and random walks, at 64 x 64 tokens.

    The names are `NAMES`, and those that are recorded beside the pass are `MANY_NAMES`.

    Args:
        checkpoint: The model, with its text encoders.
        images: The images, uint8 [H, W, 3] each.
        repetitions: The number of measured turns.

    Returns:
        The times. Its notes hold the mean number of segments by variant.
    """
    variants = {**NAMING_VARIANTS, **BESIDE_VARIANTS}
    return _measure("names", checkpoint, images, variants, names=NAMES, repetitions=repetitions)


def measure_features(checkpoint: Checkpoint, images: Sequence[np.ndarray], *, repetitions: int) -> Comparison:
    """Measure label maps of single images with features of segments and without.

    The pass without features runs twice in each turn, so that the second ratio shows what noise alone gives.

    Args:
        checkpoint: The model.
        images: The images, uint8 [H, W, 3] each.
        repetitions: The number of measured turns.
    """
    backbone = Backbone(checkpoint)
    plain, featured = Segmenter(backbone, PLAIN), Segmenter(backbone, PLAIN, features=True)
    variants = {"plain": plain, "features": featured, "plain again": plain}
    return Comparison(
        part="features",
        case=f"{checkpoint.name}, {plain.resolution} px",
        seconds=alternate({name: partial(segmenter, [*images]) for name, segmenter in variants.items()}, repetitions),
        baseline="plain",
        per=len(images),
    )


def _measure(
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
    segments: dict[str, float] = {}

    def labelling(name: str) -> Callable[[], None]:
        def run() -> None:
            results = segmenters[name]([*images], names=MANY_NAMES if name in BESIDE_VARIANTS else names)
            segments[name] = round(float(np.mean([len(result.segments) for result in results])), 1)

        return run

    seconds = alternate({name: labelling(name) for name in segmenters}, repetitions)
    return Comparison(
        part=part,
        case=f"{checkpoint.name}, {segmenters['plain'].resolution} px",
        seconds=seconds,
        baseline="plain",
        per=len(images),
        notes={"segments": segments},
    )
