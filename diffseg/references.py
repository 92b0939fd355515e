"""References of names: what a name looks like, from images that show it (ReCo; Shin et al., NeurIPS 2022, section 3).

Images of a name share its object. The segments of all these images are compared with each other, and the seed of an
image is the segment that has the best matches in the other images. The mean of the seeds is the reference of the name.
Things that accompany many names, such as the sky, match well too: segments that resemble the reference of such a
context count less (context elimination).

ReCo compares pixels of about fifty images; here segments take their place, so that all pairs are compared exactly. Two
further departures: features are taken relative to their mean over the corpus, without which nearly all are alike, and
cosines are divided by a temperature before the sigmoid, which would otherwise lie between .27 and .73. This module does
not import torch.

Axes: I images of a name, N segments of these images, E numbers of a feature, R references, C contexts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.centroids import DECIMALS, k_means, unit
from diffseg.reference_state import BACKGROUND_OWNER

BLOCK_NUMBERS = 2**22
"""Cosines that are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """How segments that resemble a context are left out.

    Attributes:
        alike: Cosine at which a segment counts half.
        temperature: Width of the step there, above 0.
    """

    alike: float = 0.8
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not -1 <= self.alike <= 1:
            raise ValueError(
                f"alike={self.alike}, temperature={self.temperature}: expected a cosine from −1 to 1 and a temperature "
                "above 0"
            )

    def weights(self, features: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Return Π_c (1 − σ((cos(j, c) − alike) / temperature)) for each feature j, float64 [N]."""
        exponents = (unit(features) @ unit(contexts).T - self.alike) / self.temperature
        return (1 / (1 + np.exp(np.minimum(exponents, 700)))).prod(axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSegments:
    """The segments of an image.

    Attributes:
        key: Identifies the image.
        features: float [n, E] of its segments, n ≥ 1, relative to the mean of the corpus.
        names: All names that it shows; used only by `background_centroids`.
        background: Numbers of its segments that are known to show none of the names; None if that is not known.
    """

    key: str
    features: np.ndarray
    names: tuple[str, ...] = ()
    background: tuple[int, ...] | None = None

    @property
    def is_background(self) -> np.ndarray:
        """Whether each segment is known to show none of the names, bool [n]."""
        return np.isin(np.arange(len(self.features)), self.background or ())


@dataclass(frozen=True, kw_only=True)
class Seed:
    """The segment of an image that best matches the other images.

    Attributes:
        key: Identifies the image.
        segment: Its number.
        support: Mean over the other images of its best match, at most 1.
    """

    key: str
    segment: int
    support: float


def find_seeds(images: Sequence[ImageSegments], contexts: np.ndarray, elimination: Elimination) -> list[Seed]:
    """Find the seed of each image of a name.

    The support of segment i is the mean over the other images of the best match max_j cos(i, j) · w_j, with j in that
    image and w_j of `Elimination.weights`. A single image is compared with itself, so that all its segments have the
    support 1 without contexts; among equal supports the first segment is taken. A segment that is known to be
    background matches none, and is no seed if the image has others.

    Args:
        images: The images, in any order. Of images with equal features only the first key counts, so that copies do
            not change a seed.
        contexts: References of the contexts, [C, E]; C may be 0.
        elimination: How segments that resemble a context are left out.

    Returns:
        The seeds in the order of the keys.
    """
    distinct = without_copies(images)
    starts = np.cumsum([0, *(len(image.features) for image in distinct)])
    rows = unit(np.concatenate([image.features for image in distinct]))
    is_background = np.concatenate([image.is_background for image in distinct])
    weights = np.where(is_background, 0, elimination.weights(rows, contexts))
    supports = np.where(is_background, -1, np.concatenate([*_supports(rows, weights, starts)]))
    seeds = []
    for image, start, stop in zip(distinct, starts, starts[1:], strict=False):
        segment = int(supports[start:stop].argmax())
        seeds.append(Seed(key=image.key, segment=segment, support=float(supports[start + segment])))
    return seeds


def without_copies(images: Sequence[ImageSegments]) -> list[ImageSegments]:
    """Return the images in the order of their keys, without those whose features equal those of an earlier one."""
    distinct: dict[bytes, ImageSegments] = {}
    for image in sorted(images, key=lambda image: image.key):
        distinct.setdefault(image.features.tobytes(), image)
    return list(distinct.values())


def _supports(rows: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the supports of blocks of segments, whose number depends on N alone, so that results repeat exactly.

    Args:
        rows: Features of length 1, float64 [N, E].
        weights: Weight of each segment as a match, float64 [N].
        starts: The first segment of each image, and N, int [I + 1].
    """
    images = len(starts) - 1
    own = np.repeat(np.arange(images), np.diff(starts))
    size = max(1, BLOCK_NUMBERS // len(rows))
    for first in range(0, len(rows), size):
        block = slice(first, first + size)
        best = np.maximum.reduceat(rows[block] @ rows.T * weights, starts[:-1], axis=1)
        if images > 1:
            best[np.arange(len(best)), own[block]] = 0
        yield np.round(best.sum(axis=1) / max(1, images - 1), DECIMALS)


def reference_of(images: Sequence[ImageSegments], seeds: Sequence[Seed]) -> np.ndarray:
    """Return the mean of the features of the seeds, scaled to length 1, float64 [E]."""
    features = {image.key: image.features for image in images}
    vectors = [features[seed.key][seed.segment].astype(np.float64) for seed in seeds]
    return unit(np.mean(vectors, axis=0))


def fit_references(
    images: Mapping[str, Sequence[ImageSegments]], contexts: Sequence[str], elimination: Elimination
) -> tuple[dict[str, np.ndarray], dict[str, list[Seed]]]:
    """Learn the reference of each name.

    The contexts come first, each with the earlier ones in force. The other names have all contexts in force.

    Args:
        images: At least one image of each name.
        contexts: Names that are contexts of the other names, in order.
        elimination: How segments that resemble a context are left out.

    Returns:
        The reference and the seeds of each name.
    """
    references: dict[str, np.ndarray] = {}
    seeds: dict[str, list[Seed]] = {}
    size = next(iter(images.values()))[0].features.shape[1] if images else 0
    for name in [*contexts, *(name for name in images if name not in contexts)]:
        in_force = [references[context] for context in contexts if context in references]
        seeds[name] = find_seeds(images[name], np.array(in_force).reshape(-1, size), elimination)
        references[name] = reference_of(images[name], seeds[name])
    return references, seeds


def centroids_of(
    images: Mapping[str, Sequence[ImageSegments]], seeds: Mapping[str, Sequence[Seed]], names: Sequence[str], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return several centroids of each name by k-means over its seeds, instead of their mean (DiCLIP).

    Args:
        images: The images of each name.
        seeds: The seeds of each name.
        names: The names in order.
        count: Largest number of centroids of a name.

    Returns:
        The centroids, float64 [V, E], and the index in `names` of the name of each, int64 [V].
    """
    vectors, owners = [], []
    for place, name in enumerate(names):
        features = {image.key: image.features for image in images[name]}
        found = k_means(np.stack([features[seed.key][seed.segment] for seed in seeds[name]]), count)
        vectors.append(found)
        owners += [place] * len(found)
    return np.concatenate(vectors), np.array(owners, np.int64)


def background_centroids(
    images: Iterable[ImageSegments], references: Mapping[str, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids of the background by k-means over the background segments of the images (OVDiff, DiCLIP).

    If an image does not say which segments are background, the one that is least like the references of all its names
    is taken. None is taken from such an image with at least as many names as segments.

    Args:
        images: The images of all names; an image may occur several times.
        references: The reference of each name.
        count: Largest number of centroids.

    Returns:
        The centroids, float64 [V, E], and the owner of each, int64 [V], which is `BACKGROUND_OWNER`. V may be 0.
    """
    found, size = [], next(iter(references.values())).shape[-1]
    for image in {image.key: image for image in images}.values():
        of_names = [references[name] for name in image.names if name in references]
        if image.background is not None:
            found.append(image.features[[*image.background]])
        elif of_names and len(image.features) > len(image.names):
            likeness = np.round(unit(image.features) @ np.stack(of_names).T, DECIMALS).max(axis=1)
            found.append(image.features[[likeness.argmin()]])
    rows = np.concatenate([np.empty((0, size)), *found])
    vectors = k_means(rows, count) if len(rows) else rows
    return vectors, np.full(len(vectors), BACKGROUND_OWNER)
