"""Find the level of a run that scores best on a few images with ground truth, and what it is expected to gain.

Axes: N images, C cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.levels import Cut
from diffseg.scoring.bootstrap import Interval, bootstrap
from pipeline.output.levels import RunCut, run_threshold
from pipeline.output.manifest import Manifest

SEGMENT_COUNTS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
STEPS = 4
"""Thresholds from one threshold to its double."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The best cut, and what it gains.

    Attributes:
        best: Index of the cut with the highest mean score.
        means: Mean score of each cut, with its interval.
        gain: Expected gain over the run's own level on images without ground truth: each image is scored at the cut
            that is best on the other images.
        fitted_gain: Gain of the best cut on the images that it was chosen on, which is too high.
    """

    best: int
    means: Sequence[Interval]
    gain: Interval
    fitted_gain: float


def candidate_cuts(manifest: Manifest, out: str) -> tuple[RunCut, ...]:
    """Return the cuts to compare, the run's own level first."""
    tau = run_threshold(manifest)
    factors = [2 ** (step / STEPS) for step in range(-STEPS, 3 * STEPS + 1) if step]
    cuts = [Cut(tau=tau), *(Cut(tau=float(f"{tau * factor:.3g}")) for factor in factors)]
    cuts += [Cut(segments=count) for count in SEGMENT_COUNTS] + [Cut(stable=True)]
    return tuple(RunCut.of(cut, manifest, out) for cut in cuts)


def tune(scores: np.ndarray) -> Tuning:
    """Choose a cut, with leave-one-out cross-validation.

    Args:
        scores: float64 [N, C], higher is better; the first cut is the run's own level. N is at least 2.
    """
    images = len(scores)
    without = (scores.sum(axis=0) - scores) / (images - 1)
    held_out = scores[np.arange(images), without.argmax(axis=1)]
    gains = (held_out - scores[:, 0])[:, None]
    (gain,) = bootstrap(gains, lambda sums: sums / images)
    best = int(scores.mean(axis=0).argmax())
    return Tuning(
        best=best,
        means=bootstrap(scores, lambda sums: sums / images),
        gain=gain,
        fitted_gain=float((scores[:, best] - scores[:, 0]).mean()),
    )
