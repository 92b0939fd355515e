"""Compare a run with another one on the images that both have, against the same ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffseg.scoring.paired import PairedScore, paired_scores
from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.score import THIS_RUN, ScoredImage
from pipeline.storage import SourceError


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of two runs on the same images.

    Attributes:
        other: The other run, without credentials.
        images: Number of images with at least one scored pixel in both runs.
        scores: Scores by name; the first is that of the other run, the second that of this one.
    """

    other: str
    images: int
    scores: Mapping[str, PairedScore]


def by_ground_truth(scored: Sequence[ScoredImage], pairing: Pairing) -> dict[str, ScoredImage]:
    """Return images by the key of their ground truth, which is the same in runs over other copies of the images."""
    return {pairing.pairs[image.location]: image for image in scored}


def compare(
    this: Mapping[str, ScoredImage], other: Mapping[str, ScoredImage], name: str, classes: Sequence[int] | None
) -> Comparison:
    """Compare two runs by their images with the same ground truth.

    Args:
        this: Images of this run by the key of their ground truth.
        other: Images of the other run, likewise.
        name: The other run, for messages and tables.
        classes: Ids of the ground truth's classes; None for those that occur.

    Raises:
        SourceError: The runs have no image in common.
    """
    common = sorted(this.keys() & other.keys())
    if not common:
        raise SourceError(f"{name}: has no image with ground truth in common with this run")
    first, second = ([side[key].scores[THIS_RUN] for key in common] for side in (other, this))
    scores = paired_scores(first, second, classes)
    images = scores["covering"].first.count if scores else 0
    return Comparison(other=name, images=images, scores=scores)
