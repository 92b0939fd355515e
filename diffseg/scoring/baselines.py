"""Segmentations without a model, which a model must beat: none at all, a grid, clusters of colour, two classics.

Each is a callable from uint8 [H, W, 3] to uint16 [H, W], of any size; its fields are its settings. The defaults are the
best on generated validation scenes, as `python -m diffseg.tiny.evaluation.tune_baselines` finds them; no photograph was looked at.

Those with settings see the image with its longer side at 256 pixels, so that lengths and areas mean the same
everywhere and a model of 256 px is compared with what sees as much.
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
"""Longer side, in pixels, at which images are looked at; smaller ones are left as they are."""

# CIE XYZ of the sRGB primaries, rows divided by the D65 white point.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ /= XYZ.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal rectangles, rows x columns of them, wherever the image shows what."""

    rows: int = 2
    columns: int = 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        cells = np.arange(self.rows * self.columns, dtype=np.uint16).reshape(self.rows, self.columns)
        return _enlarge(cells, image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """k-means on CIE L*a*b* and position.

    Attributes:
        clusters: k.
        reach: the longer side in units of L*: the larger, the more compact the clusters.
        side: longer side, in pixels, to which colours are averaged first.
        seed: of the k-means++ initialisation.
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
    """Felzenszwalb and Huttenlocher, IJCV 2004, on RGB (scikit-image).

    Attributes:
        scale: k of the paper; the larger, the larger the segments.
        sigma: of the Gaussian before, in pixels.
        min_area: smaller segments are merged, as a share of the image.
    """

    scale: float = 500.0
    sigma: float = 0.9
    min_area: float = 0.007

    def __call__(self, image: np.ndarray) -> np.ndarray:
        from skimage.segmentation import felzenszwalb

        small = _reduce(image, SIDE)
        least = round(self.min_area * small.shape[0] * small.shape[1])
        labels = felzenszwalb(small, scale=self.scale, sigma=self.sigma, min_size=least)
        return _enlarge(labels.astype(np.uint16), image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Superpixels:
    """SLIC (Achanta et al., PAMI 2012), then neighbours of like mean colour are merged, the most alike first.

    Attributes:
        count: superpixels, about.
        compactness: of SLIC, colour against place.
        threshold: neighbours whose mean colours differ by less, in units of L*, are one.
        small: a segment of this share of the image is merged across twice that difference, a smaller one across more.
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
        merged = self._merged(colours, areas, _adjacent(superpixels))
        return _enlarge(merged[superpixels], image.shape[:2])

    def _merged(self, colours: np.ndarray, areas: np.ndarray, adjacent: np.ndarray) -> np.ndarray:
        """The segment of each superpixel, uint16 [N], of mean colours [N, 3], pixels [N], bool [N, N]; all are lost."""
        smallest = self.small * areas.sum()
        segment = np.arange(len(areas), dtype=np.uint16)

        def differences(one: int) -> np.ndarray:
            apart = np.linalg.norm(colours - colours[one], axis=1)
            return np.where(adjacent[one], apart / (1 + smallest / np.minimum(areas, areas[one])), np.inf)

        table = np.stack([differences(one) for one in range(len(areas))])
        while table.min() < self.threshold:
            kept, gone = divmod(int(table.argmin()), len(areas))
            segment[segment == gone] = kept
            colours[kept] = np.average(colours[[kept, gone]], axis=0, weights=areas[[kept, gone]])
            areas[kept] += areas[gone]
            adjacent[kept] |= adjacent[gone]
            adjacent[kept, kept] = False
            adjacent[:, kept] = adjacent[kept]
            adjacent[gone] = adjacent[:, gone] = False
            table[gone] = table[:, gone] = np.inf
            table[kept] = table[:, kept] = differences(kept)
        return segment


def _adjacent(labels: np.ndarray) -> np.ndarray:
    """bool [N, N]: which of the labels 0 … N−1 share a border."""
    count = int(labels.max()) + 1
    adjacent = np.full((count, count), False)
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        adjacent[one, other] = adjacent[other, one] = True
    np.fill_diagonal(adjacent, False)
    return adjacent


BASELINES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "one segment": Grid(rows=1, columns=1),
    "grid": Grid(),
    "k-means": Clusters(),
    "Felzenszwalb": Felzenszwalb(),
    "SLIC + merging": Superpixels(),
}
"""By the name that a table gives them; without the last two where scikit-image is missing."""

LEFT_OUT = ""
"""What to tell a user about baselines that are missing; empty where none is."""

if importlib.util.find_spec("skimage") is None:
    BASELINES = {name: BASELINES[name] for name in ("one segment", "grid", "k-means")}
    LEFT_OUT = (
        "Felzenszwalb and SLIC + merging are left out: they need scikit-image (pip install 'diffseg-pipeline[demo]')"
    )


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB pixels: uint8 [H, W, 3] -> float64 [H, W, 3], L in [0, 100]."""
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
    """Averaged down to a longer side of at most `side` pixels: uint8 [H, W, 3] -> uint8 [h, w, 3]."""
    height, width = image.shape[:2]
    ratio = min(1.0, side / max(height, width))
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel of an image of `size` (H, W) gets the label at its place in [h, w]."""
    rows, columns = (np.arange(pixels) * cells // pixels for pixels, cells in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
