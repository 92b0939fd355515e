"""Part merging: our aggregation, merging and decision beside the formulas and the code of google/diffseg.

Axes: P positions (tokens), H heads. Maps are float32 [H, P, P] by side of the square token grid.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffseg import segment_attention
from diffseg.attention.maps import Grid
from diffseg.scoring.overlap import overlap
from jobs.benchmarks.measure import Comparison, alternate
from jobs.benchmarks.planted import planted_attention

SIDES = (64, 32, 16, 8)
"""Sides of the attention maps of Stable Diffusion at 512 px, in tokens."""
TAU, ANCHORS = 0.9, 16
"""Merging threshold of all rounds, and anchors per side."""


def measure_merging(*, regions: int, repetitions: int, reference: Path | None) -> Comparison:
    """Measure label maps from planted attention of 64 x 64 tokens with the preset google.

    Variants: ours; plain, our transcription of the released formulas, element by element in float32; and google/diffseg
    (the released code), if a checkout is given.

    Args:
        regions: The number of planted regions.
        repetitions: The number of measured turns.
        reference: A checkout of google/diffseg.

    Returns:
        The times. Its notes hold the share of pixels on which each other variant agrees with ours.

    Raises:
        ValueError: The checkout or its requirements are missing.
    """
    maps: dict[int | Grid, np.ndarray] = dict(planted_attention(regions, SIDES).items())
    labels: dict[str, np.ndarray] = {}

    def keeping_labels(name: str, segment: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            labels[name] = segment()

        return run

    variants = {
        "ours": keeping_labels("ours", lambda: segment_attention(maps, preset="google", tau=TAU)),
        "plain": keeping_labels("plain", lambda: plain_segments(maps)),
    }
    if reference is not None:
        released = load_reference(reference)
        variants["google/diffseg"] = keeping_labels("google/diffseg", lambda: released(maps))
    seconds = alternate(variants, repetitions)
    shares = {name: agreement(labels["ours"], others) for name, others in labels.items() if name != "ours"}
    return Comparison(
        part="merging",
        case=f"{regions} regions, {SIDES[0]} x {SIDES[0]} tokens",
        seconds=seconds,
        baseline="ours",
        notes={"segments": len(np.unique(labels["ours"])), "agreement": shares},
    )


def agreement(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the share of pixels in the same segment, 0 to 1, after the numbers are matched in the best way."""
    table = overlap(labels, others).shared
    return float(table.max(axis=1).sum() / table.sum())


def plain_segments(maps: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Segment as the released code does, step by step in float32 and one anchor at a time.

    Returns:
        The label map, int64 [512, 512].
    """
    aggregated = _plain_aggregate(maps)
    step = 63 // (ANCHORS - 1)
    axis = torch.arange(ANCHORS) * step + (63 - (ANCHORS - 1) * step) // 2
    anchors = (axis[:, None] * 64 + axis).flatten()
    rows = [aggregated[_plain_kl(aggregated[anchor], aggregated) < TAU].mean(dim=0) for anchor in anchors]
    for _ in range(2):
        merged, matched = [], [False] * len(rows)
        proposals = torch.stack(rows)
        for index in range(len(rows)):
            if not matched[index]:
                close = _plain_kl(proposals[index], proposals) < TAU
                matched = [before or bool(now) for before, now in zip(matched, close, strict=True)]
                merged.append(proposals[close].mean(dim=0))
        rows = merged
    scores = torch.stack(rows).view(1, -1, 64, 64)
    return F.interpolate(scores, (512, 512), mode="bilinear", align_corners=False)[0].argmax(dim=0).numpy()


def _plain_aggregate(maps: Mapping[Any, np.ndarray]) -> torch.Tensor:
    """Aggregate the maps to float32 [4096, 4096]; each resolution has a weight proportional to its side."""
    total = torch.zeros(64, 64, 64, 64)
    for side, heads in maps.items():
        mean = torch.from_numpy(heads).mean(dim=0).view(side * side, 1, side, side)
        fine = F.interpolate(mean, (64, 64), mode="bilinear", align_corners=False).view(side, side, 64, 64)
        fine = fine / fine.sum(dim=(2, 3), keepdim=True)
        total += fine.repeat_interleave(64 // side, 0).repeat_interleave(64 // side, 1) * side / sum(maps)
    return total.view(4096, 4096)


def _plain_kl(distribution: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the mean of the KL divergences in both directions, in nats."""
    log_ratio = distribution.log() - others.log()
    return (distribution * log_ratio).sum(dim=-1) / 2 - (others * log_ratio).sum(dim=-1) / 2


def load_reference(checkout: Path) -> Callable[[Mapping[Any, np.ndarray]], np.ndarray]:
    """Load the segmentor of a google/diffseg checkout, as a function from maps to a label map.

    Raises:
        ValueError: The folder is no checkout, or TensorFlow or scikit-learn is not installed.
    """
    path = checkout / "diffseg" / "segmentor.py"
    spec = importlib.util.spec_from_file_location("google_diffseg_segmentor", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{checkout}: expected a checkout of google/diffseg, found no {path}")
    module: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"{path} needs tensorflow and scikit-learn in this environment: {error}") from error
    released = module.DiffSeg([TAU] * 3, False, ANCHORS)
    return lambda maps: released.segment(*([maps[side]] for side in SIDES))[0]
