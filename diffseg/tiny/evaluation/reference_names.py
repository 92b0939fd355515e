"""Names by references beside names by cross-attention, on captioned scenes of the text model.

Segments are not matched to classes: a name is right or wrong. References are learned from other scenes, of which only
the nouns of their visible classes are known, as from image labels. Their segments come from passes without names.

Axes: S scenes, C classes of the vocabulary, K segments, F counts of a scene.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from diffseg.centroids import unit
from diffseg.references import Elimination, ImageSegments, centroids_of, fit_references
from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.tiny.evaluation.samples import SEEDS, Sample, captioned_samples
from diffseg.tiny.evaluation.tables import format_mean, markdown
from diffseg.tiny.scenes.captioned import visible_classes
from diffseg.tiny.scenes.vocabulary import NOUNS

HEADINGS = ("segments right", "pixels right", "mIoU of classes")


@dataclass(frozen=True, kw_only=True)
class ReferenceNames:
    """Score names by references and by cross-attention on captioned scenes, and print a table."""

    archive: int = 100
    """Scenes that references are learned from."""
    images: int = 60
    """Scenes that are named: those after the archive."""
    scenes: Literal["validation", "held-out"] = "held-out"
    """Held-out scenes for results to report, and validation scenes for decisions."""
    contexts: int = 5
    """How many of the most frequent names are contexts."""
    elimination: Elimination = field(default_factory=Elimination)
    """How segments that resemble a context are left out."""
    centroids: int = 10
    """Centroids of a name, beside one reference."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A scene of the archive or of the test.

    Attributes:
        key: Its name.
        visible: Its visible classes.
        ground_truth: Classes, uint16 [H, W].
        segmentation: Its segments, with features.
    """

    key: str
    visible: list[int]
    ground_truth: np.ndarray
    segmentation: Segmentation

    @property
    def features(self) -> np.ndarray:
        """Features of its segments, float32 [K, 256]."""
        assert self.segmentation.features is not None
        return self.segmentation.features.segments.astype(np.float32)

    @property
    def true_classes(self) -> np.ndarray:
        """The class of most pixels of each segment, int64 [K]."""
        pairs = self.segmentation.labels.ravel().astype(np.int64) * len(NOUNS) + self.ground_truth.ravel()
        counts = np.bincount(pairs, minlength=len(self.segmentation.segments) * len(NOUNS))
        return counts.reshape(-1, len(NOUNS)).argmax(axis=1)


def count_right(scene: Scene, segmentation: Segmentation, classes: np.ndarray) -> np.ndarray:
    """Return the counts of a scene whose segments got some classes, which are summed over scenes.

    Args:
        scene: The scene.
        segmentation: Its segments, perhaps of another pass.
        classes: The class of each segment, int64 [K].

    Returns:
        float64 [F]: segments, those that are right, pixels, those that are right, and of each class the pixels of the
        intersection and of the union with its ground truth.
    """
    true = Scene(**{**vars(scene), "segmentation": segmentation}).true_classes
    given = classes[segmentation.labels]
    right = given == scene.ground_truth
    intersection = np.bincount(given[right], minlength=len(NOUNS))
    union = sum(np.bincount(each.ravel(), minlength=len(NOUNS)) for each in (given, scene.ground_truth)) - intersection
    segments = [len(classes), (true == classes).sum(), right.size, right.sum()]
    return np.concatenate([segments, intersection, union]).astype(np.float64)


def statistics(sums: np.ndarray) -> np.ndarray:
    """Return the scores of `HEADINGS` from summed counts."""
    segments, segments_right, pixels, pixels_right = sums[:4]
    intersection, union = sums[4:].reshape(2, len(NOUNS))
    with np.errstate(invalid="ignore"):
        return np.array([segments_right / segments, pixels_right / pixels, np.nanmean(intersection / union)])


def chance(sums: np.ndarray) -> np.ndarray:
    """Return the share of segments that a random choice among the possible names gets right."""
    return sums[:1] / sums[1:2]


def score(settings: ReferenceNames) -> Iterator[tuple[str, list[Interval]]]:
    """Yield the scores of each way to name, by its description."""
    seeds = SEEDS[settings.scenes]
    plain = Segmenter.from_pretrained("tiny-text", features=True)
    archive = [*_scenes(plain, captioned_samples(seeds[: settings.archive], 256))]
    stop = settings.archive + settings.images
    tests = [*_scenes(plain, captioned_samples(seeds[settings.archive : stop], 256))]
    for contexts, centroids in ((settings.contexts, 1), (settings.contexts, settings.centroids), (0, 1)):
        mean, references = _learn(archive, contexts, settings.elimination, centroids)
        for own in (True, False):
            counts = []
            for scene in tests:
                places = np.array(scene.visible if own else [*range(len(NOUNS))])
                cosines = np.stack(
                    [(unit(scene.features - mean) @ references[p].T).max(axis=1) for p in places], axis=1
                )
                counts.append(count_right(scene, scene.segmentation, places[cosines.argmax(axis=1)]))
            learned = f"{contexts} contexts" + (f", {centroids} centroids" if centroids > 1 else "")
            yield f"references, {learned}, {_names(own)}", bootstrap(np.array(counts), statistics)
    cross = Segmenter.from_pretrained("tiny-text", naming=True)
    for own in (True, False):
        samples = captioned_samples(seeds[settings.archive : stop], 256)
        counts = []
        for scene, sample in zip(_progress(tests), samples, strict=True):
            names = [NOUNS[c] for c in scene.visible] if own else NOUNS
            result = cross(sample.load()[0], names)
            classes = np.array([NOUNS.index(segment.name) for segment in result.segments])
            counts.append(count_right(scene, result, classes))
        yield f"cross-attention, {_names(own)}", bootstrap(np.array(counts), statistics)
    for own in (True, False):
        shares = [[len(s.true_classes) / (len(s.visible) if own else len(NOUNS)), len(s.true_classes)] for s in tests]
        yield f"chance, {_names(own)}", bootstrap(np.array(shares), chance)


def _names(own: bool) -> str:
    return "own names" if own else f"all {len(NOUNS)} names"


def _progress(scenes: Sequence[Scene]) -> Iterator[Scene]:
    yield from track(scenes, description="naming", console=Console(stderr=True))


def _scenes(segmenter: Segmenter, samples: Sequence[Sample]) -> Iterator[Scene]:
    for sample in track(samples, description="segmenting", console=Console(stderr=True)):
        image, ground_truth = sample.load()
        visible = [int(c) for c in visible_classes(ground_truth)]
        yield Scene(key=sample.name, visible=visible, ground_truth=ground_truth, segmentation=segmenter(image))


def _learn(
    archive: Sequence[Scene], contexts: int, elimination: Elimination, centroids: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the mean feature and the vectors of each class, [V, 256], 0 for one that no scene shows."""
    images = [scene.segmentation.features.image for scene in archive if scene.segmentation.features is not None]
    mean = np.mean([image.astype(np.float64) for image in images], axis=0).astype(np.float32)
    by_class = {str(c): [scene for scene in archive if c in scene.visible] for c in range(len(NOUNS))}
    shown = {
        c: [ImageSegments(key=s.key, features=s.features - mean) for s in each] for c, each in by_class.items() if each
    }
    frequent = sorted(shown, key=lambda c: (-len(shown[c]), c))[:contexts]
    vectors, seeds = fit_references(shown, frequent, elimination)
    true = {scene.key: scene.true_classes for scene in archive}
    hits = [true[seed.key][seed.segment] == int(c) for c, found in seeds.items() for seed in found]
    print(f"{contexts} contexts: {np.mean(hits):.3f} of {len(hits)} seeds show their name", file=sys.stderr)
    of_class = {c: vector[None] for c, vector in vectors.items()}
    if centroids > 1:
        found, owners = centroids_of(shown, seeds, [*shown], centroids)
        of_class = {c: found[owners == place] for place, c in enumerate(shown)}
    return mean, [of_class.get(str(c), np.zeros((1, len(mean)))) for c in range(len(NOUNS))]


def main() -> None:
    """Print the table."""
    rows = []
    for title, intervals in score(tyro.cli(ReferenceNames, description=__doc__)):
        cells = [format_mean(name, interval) for name, interval in zip(HEADINGS, intervals, strict=False)]
        rows.append([title, *cells, *[""] * (len(HEADINGS) - len(cells))])
    print(markdown(["names by", *HEADINGS], rows))


if __name__ == "__main__":
    main()
