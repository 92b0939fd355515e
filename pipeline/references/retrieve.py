"""Find the images that show a name: in one label shard, and from what was found in all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from diffseg.references import Elimination
from diffseg.segmentation import BACKGROUND
from pipeline.digest import short_digest
from pipeline.output.commit import LabelShard
from pipeline.output.reader import label_rows
from pipeline.output.rows import FEATURE_COLUMNS
from pipeline.readers.names import NameReader, NamesError, NameSettings
from pipeline.readers.samples import Sample
from pipeline.storage import Storage

PROBLEMS_KEPT = 100

ADDED_FIELDS = {"centroids": 1, "background": 0}
"""Settings that states of earlier versions lack, and their defaults. A state leaves out those at their default."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """What determines references, together with the run.

    Attributes:
        by: What says that an image shows a name. labels: the sample's labels or caption, read as `naming` says. names:
            the names that its segments have, best scores first.
        naming: The names, and the field of a sample that lists them.
        images: Largest number of images of a name.
        contexts: How many of the most frequent names are contexts of the others.
        elimination: How segments that resemble a context are left out.
        centroids: Largest number of centroids of a name; 1 gives the mean of the seeds.
        background: Largest number of centroids of the background; 0 gives none.
    """

    naming: NameSettings
    by: Literal["labels", "names"] = "labels"
    images: int = 50
    contexts: int = 5
    elimination: Elimination = field(default_factory=Elimination)
    centroids: int = 1
    background: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.contexts < 0:
            raise ValueError(f"images {self.images}, contexts {self.contexts}: expected at least 1 and at least 0")
        if self.centroids < 1 or self.background < 0:
            raise ValueError(
                f"centroids {self.centroids}, background {self.background}: expected at least 1 and at least 0"
            )
        if self.by == "labels" and self.naming.labels_field is None and self.naming.caption_field is None:
            raise ValueError(
                "the run has no field that says which names are in an image: give --labels-field with --names, or "
                "--caption-field, or retrieve --by names, the names that segments have in the run"
            )

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in plain.items() if name not in ADDED_FIELDS or value != ADDED_FIELDS[name]}


class Candidate(NamedTuple):
    """An image that shows a name. Candidates sort by score, the best first, and then in a fixed random order.

    Attributes:
        minus_score: The negative score, −1 to 0.
        order: Digest of the key.
        shard: Label shard of its row.
        row: Index of its row.
        key: Its key.
        names: All names that it shows.
    """

    minus_score: float
    order: str
    shard: LabelShard
    row: int
    key: str
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundImages:
    """The images of one label shard that show each name.

    Attributes:
        images: Number of labelled images.
        sum: The sum of their features, float64 [256].
        counts: How many images show each name.
        candidates: For each name, the images that may be among the retrieved ones.
        unused: How many images do not say which names they show.
        problems: Why they do not; the first `PROBLEMS_KEPT` reasons.
    """

    images: int
    sum: np.ndarray
    counts: Mapping[str, int]
    candidates: Mapping[str, list[Candidate]]
    unused: int
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values. Python writes float64 numbers so that they are read back exactly."""
        kept = {
            name: [(c.minus_score, c.row, c.key, c.names) for c in of_name] for name, of_name in self.candidates.items()
        }
        return {**vars(self), "sum": self.sum.tolist(), "candidates": kept}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], shard: LabelShard) -> FoundImages:
        """Return what `to_json` returned. Raises ValueError, TypeError or KeyError for other values."""
        candidates = {
            name: [
                Candidate(minus, short_digest(key), shard, row, key, tuple(names)) for minus, row, key, names in each
            ]
            for name, each in fields["candidates"].items()
        }
        return cls(**{**fields, "sum": np.array(fields["sum"], np.float64), "candidates": candidates})


def find_images(out: Storage, shard: LabelShard, settings: ReferenceSettings, reader: NameReader | None) -> FoundImages:
    """Return the images of a label shard that show each name.

    Args:
        out: OUT of the run.
        shard: The label shard.
        settings: How images are retrieved.
        reader: Reads the names of a sample; None to take those of its segments.
    """
    sums, images, unused = np.zeros(()), 0, 0
    counts: dict[str, int] = {}
    candidates: dict[str, list[Candidate]] = {}
    problems: list[str] = []
    for row in label_rows(out, shard, ["key", "index", "status", "segments", "meta", FEATURE_COLUMNS[0]]):
        if row["status"] != "ok":
            continue
        # Sums of half-precision numbers below 1 are exact in float64, so that the order of rows changes no bit.
        sums = sums + np.frombuffer(row[FEATURE_COLUMNS[0]], "<f2").astype(np.float64)
        images += 1
        try:
            scores = names_of(row, reader)
        except NamesError as error:
            unused += 1
            if len(problems) < PROBLEMS_KEPT:
                problems.append(f"{row['key']}: {error}")
            continue
        for name, score in scores.items():
            counts[name] = counts.get(name, 0) + 1
            found = Candidate(-score, short_digest(row["key"]), shard, row["index"], row["key"], tuple(scores))
            _keep(candidates.setdefault(name, []), [found], settings.images)
    best = {name: sorted(kept)[: settings.images] for name, kept in candidates.items()}
    return FoundImages(images=images, sum=sums, counts=counts, candidates=best, unused=unused, problems=problems)


def names_of(row: Mapping[str, Any], reader: NameReader | None) -> dict[str, float]:
    """Return the names that an image shows, with scores from 0 to 1.

    Args:
        row: The row of the image.
        reader: Reads the names from its labels or its caption; None to take those of its segments.
    """
    if reader is not None:
        sample = Sample(index=row["index"], key=row["key"], image=None, meta=row["meta"])
        return dict.fromkeys(reader(sample).names, 1.0)
    scores: dict[str, float] = {}
    for segment in row["segments"]:
        name = segment["name"]
        if name is not None and name != BACKGROUND:
            scores[name] = max(scores.get(name, 0.0), segment["name_score"] or 0.0)
    return scores


def _keep(kept: list[Candidate], found: Iterable[Candidate], images: int) -> None:
    """Add candidates, and drop those that cannot be among the first `images` any more."""
    kept += found
    if len(kept) >= 4 * images:
        kept.sort()
        del kept[images:]


class Retrieval:
    """The images of each name in a whole run, added up over its label shards in any order."""

    def __init__(self, settings: ReferenceSettings) -> None:
        self._settings = settings
        self.candidates: dict[str, list[Candidate]] = {}
        self.counts: dict[str, int] = {}
        self.images = self.unused = 0
        self.sum = np.zeros(())
        self.problems: list[str] = []

    def add(self, found: FoundImages) -> None:
        """Add the images of a label shard."""
        self.images += found.images
        self.unused += found.unused
        self.sum = self.sum + found.sum
        self.problems += found.problems[: PROBLEMS_KEPT - len(self.problems)]
        for name, candidates in found.candidates.items():
            self.counts[name] = self.counts.get(name, 0) + found.counts[name]
            _keep(self.candidates.setdefault(name, []), candidates, self._settings.images)

    @property
    def mean(self) -> np.ndarray:
        """The mean feature of the labelled images, float64 [256]."""
        return self.sum / max(1, self.images)

    def ranked(self) -> dict[str, list[Candidate]]:
        """Return the retrieved images of each name, the best first."""
        return {name: sorted(kept)[: self._settings.images] for name, kept in self.candidates.items()}


def unique_key(candidate: Candidate) -> str:
    """Return a text that is unique to an image, by which images are ordered. Keys may repeat in a run."""
    return f"{candidate.key}\0{candidate.shard}\0{candidate.row}"
