"""Segmentation without a model, as baselines: one segment, a grid, clusters of colour, and two classical methods.

Each baseline maps uint8 [H, W, 3] of any size to uint16 [H, W], and its fields are its settings. The defaults are the
best settings on generated validation scenes, found by `python -m diffseg.tiny.evaluation.tune_baselines`; photographs
were not used.

The baselines with settings work on the image with its longer side at 256 pixels. Lengths and areas then mean the same
for all images, and a model that reads 256 pixels is compared with methods that see as much detail.

Axes: H and W pixels, N superpixels or labels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.cluster.vq import kmeans2

__all__ = ["BASELINES", "LEFT_OUT", "Clusters", "Felzenszwalb", "Grid", "Superpixels", "to_lab"]

SIDE = 256
"""Longer side, in pixels, to which images are reduced; smaller images keep their size."""

XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ /= XYZ.sum(1, keepdims=True)
"""CIE XYZ of the sRGB primaries, with rows divided by the D65 white point."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal rectangles, whatever the image shows.

    Attributes:
        rows: Number of rectangles from top to bottom.
        columns: Number of rectangles from left to right.
    """

    rows: int = 2
    columns: int = 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        cells = np.arange(self.rows * self.columns, dtype=np.uint16).reshape(self.rows, self.columns)
        return _enlarge(cells, image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """k-means on CIE L*a*b* colours and positions.

    Attributes:
        clusters: Number of clusters, k.
        reach: Length of the image's longer side in units of L*; larger values give more compact clusters.
        side: Longer side, in pixels, to which the image is averaged first.
        seed: Seed of the k-means++ initialisation.
    """

    clusters: int = 3
    reach: float = 40.0
    side: int = 128
    seed: int = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        lab = to_lab(_reduce(image, self.side))
        height, width = lab.shape[:2]
        y, x = np.mgrid[:height, :width] / max(height, width) * self.reach
        features = np.concatenate([lab, y[..., None], x[..., None]], -1).reshape(-1, 5)
        clusters = min(self.clusters, len(features))
        _, labels = kmeans2(features, clusters, iter=20, minit="++", missing="warn", seed=self.seed)
        return _enlarge(labels.reshape(height, width).astype(np.uint16), image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Felzenszwalb:
    """The method of Felzenszwalb and Huttenlocher (IJCV 2004) on RGB, from scikit-image.

    Attributes:
        scale: The paper's k; larger values give larger segments.
        sigma: Standard deviation of the Gaussian filter that is applied first, in pixels.
        min_area: Share of the image below which segments are merged.
    """

    scale: float = 500.0
    sigma: float = 0.9
    min_area: float = 0.007

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import felzenszwalb

        small = _reduce(image, SIDE)
        min_size = round(self.min_area * small.shape[0] * small.shape[1])
        labels = felzenszwalb(small, scale=self.scale, sigma=self.sigma, min_size=min_size)
        return _enlarge(labels.astype(np.uint16), image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Superpixels:
    """SLIC superpixels (Achanta et al., PAMI 2012), merged with neighbours, the most similar mean colours first.

    Attributes:
        count: Approximate number of superpixels.
        compactness: SLIC's weight of position relative to colour.
        threshold: Difference of mean colours below which neighbours are merged, in units of L*.
        small: Share of the image at which a segment is merged across twice that difference; a smaller segment is merged
            across an even larger difference.
    """

    count: int = 100
    compactness: float = 30.0
    threshold: float = 17.0
    small: float = 0.01

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import slic

        small = _reduce(image, SIDE)
        superpixels = slic(small, n_segments=self.count, compactness=self.compactness, start_label=0)
        areas = np.bincount(superpixels.ravel()).astype(np.float64)
        lab = to_lab(small).reshape(-1, 3).T
        colours = np.stack([np.bincount(superpixels.ravel(), channel) for channel in lab], 1) / areas[:, None]
        segments = self._merge(colours, areas, _adjacency(superpixels))
        return _enlarge(segments[superpixels], image.shape[:2])

    def _merge(self, colours: np.ndarray, areas: np.ndarray, adjacent: np.ndarray) -> np.ndarray:
        """Merge superpixels, and return the segment of each, uint16 [N]; all arguments are overwritten.

        Args:
            colours: Mean colours, float64 [N, 3].
            areas: Areas in pixels, float64 [N].
            adjacent: bool [N, N], which superpixels share a border.
        """
        smallest = self.small * areas.sum()
        segment = np.arange(len(areas), dtype=np.uint16)

        def differences(index: int) -> np.ndarray:
            distance = np.linalg.norm(colours - colours[index], axis=1)
            return np.where(adjacent[index], distance / (1 + smallest / np.minimum(areas, areas[index])), np.inf)

        table = np.stack([differences(index) for index in range(len(areas))])
        while table.min() < self.threshold:
            kept, absorbed = divmod(int(table.argmin()), len(areas))
            segment[segment == absorbed] = kept
            colours[kept] = np.average(colours[[kept, absorbed]], axis=0, weights=areas[[kept, absorbed]])
            areas[kept] += areas[absorbed]
            adjacent[kept] |= adjacent[absorbed]
            adjacent[kept, kept] = False
            adjacent[:, kept] = adjacent[kept]
            adjacent[absorbed] = adjacent[:, absorbed] = False
            table[absorbed] = table[:, absorbed] = np.inf
            table[kept] = table[:, kept] = differences(kept)
        return segment


def _adjacency(labels: np.ndarray) -> np.ndarray:
    """Return which of the labels 0 … N−1 share a border, bool [N, N]."""
    count = int(labels.max()) + 1
    adjacent = np.full((count, count), False)
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        adjacent[first, second] = adjacent[second, first] = True
    np.fill_diagonal(adjacent, False)
    return adjacent


BASELINES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "one segment": Grid(rows=1, columns=1),
    "grid": Grid(),
    "k-means": Clusters(),
    "Felzenszwalb": Felzenszwalb(),
    "SLIC + merging": Superpixels(),
}
"""Baselines by their names in tables; the last two are missing if scikit-image is not installed."""

LEFT_OUT = ""
"""Message for users about missing baselines; empty if there are none."""

if importlib.util.find_spec("skimage") is None:
    BASELINES = {name: BASELINES[name] for name in ("one segment", "grid", "k-means")}
    LEFT_OUT = (
        "Felzenszwalb and SLIC + merging are left out: they need scikit-image (pip install 'diffseg-pipeline[demo]')"
    )


def to_lab(image: np.ndarray) -> np.ndarray:
    """Convert sRGB pixels, uint8 [H, W, 3], to CIE L*a*b* (D65), float64 [H, W, 3] with L* in [0, 100]."""
    encoded = image / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ XYZ.T
    cube = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [
            116 * cube[..., 1] - 16,
            500 * (cube[..., 0] - cube[..., 1]),
            200 * (cube[..., 1] - cube[..., 2]),
        ],
        axis=-1,
    )


def _reduce(image: np.ndarray, side: int) -> np.ndarray:
    """Average uint8 [H, W, 3] down to a longer side of at most `side` pixels."""
    height, width = image.shape[:2]
    ratio = min(1.0, side / max(height, width))
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a label map to `size` (H, W): each pixel takes the label at its relative position."""
    rows, columns = (np.arange(pixels) * cells // pixels for pixels, cells in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
