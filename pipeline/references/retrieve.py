"""Find the images of a run that show a name, and their features."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffseg.references import Elimination, ImageSegments, Seed
from diffseg.segmentation import BACKGROUND
from pipeline.digest import short_digest
from pipeline.output.commit import LabelShard
from pipeline.output.reader import label_rows
from pipeline.output.rows import FEATURE_COLUMNS
from pipeline.readers.names import NameReader, NamesError, NameSettings
from pipeline.readers.samples import Sample
from pipeline.storage import SourceError, Storage

PROBLEMS_KEPT = 100

RETRIEVAL_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("rank", pa.int32()),
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("key", pa.string()),
        ("score", pa.float32()),
        ("segment", pa.int32()),
        ("support", pa.float32()),
    ]
)
"""Columns of retrieval.parquet. An image that is a copy of another one of the name has neither segment nor support."""


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
    """

    naming: NameSettings
    by: Literal["labels", "names"] = "labels"
    images: int = 50
    contexts: int = 5
    elimination: Elimination = field(default_factory=Elimination)

    def __post_init__(self) -> None:
        if self.images < 1 or self.contexts < 0:
            raise ValueError(f"images {self.images}, contexts {self.contexts}: expected at least 1 and at least 0")
        if self.by == "labels" and self.naming.labels_field is None and self.naming.caption_field is None:
            raise ValueError(
                "the run has no field that says which names are in an image: give --labels-field with --names, or "
                "--caption-field, or retrieve --by names, the names that segments have in the run"
            )


class Candidate(NamedTuple):
    """An image that shows a name. Candidates sort by score, the best first, and then in a fixed random order."""

    minus_score: float
    order: str
    shard: LabelShard
    row: int
    key: str


class Retrieval:
    """Finds the images of each name, and sums their features."""

    def __init__(self, settings: ReferenceSettings) -> None:
        self._settings = settings
        self._reader = NameReader(settings.naming) if settings.by == "labels" else None
        self.candidates: dict[str, list[Candidate]] = {}
        self.counts: dict[str, int] = {}
        self.images = self.unused = 0
        self.sum = np.zeros(())
        self.problems: list[str] = []

    def read(self, out: Storage, shard: LabelShard) -> None:
        """Add the rows of a label shard."""
        columns = ["key", "index", "status", "segments", "meta", FEATURE_COLUMNS[0]]
        for row in label_rows(out, shard, columns):
            if row["status"] != "ok":
                continue
            # Sums of half-precision numbers below 1 are exact in float64, so that the order of rows changes no bit.
            self.sum = self.sum + np.frombuffer(row[FEATURE_COLUMNS[0]], "<f2").astype(np.float64)
            self.images += 1
            try:
                scores = self._scores(row)
            except NamesError as error:
                self.unused += 1
                if len(self.problems) < PROBLEMS_KEPT:
                    self.problems.append(f"{row['key']}: {error}")
                continue
            for name, score in scores.items():
                self._add(name, Candidate(-score, short_digest(row["key"]), shard, row["index"], row["key"]))

    def _scores(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the names of an image with their scores, 0 to 1."""
        if self._reader is not None:
            sample = Sample(index=row["index"], key=row["key"], image=None, meta=row["meta"])
            return dict.fromkeys(self._reader(sample).names, 1.0)
        scores: dict[str, float] = {}
        for segment in row["segments"]:
            name = segment["name"]
            if name is not None and name != BACKGROUND:
                scores[name] = max(scores.get(name, 0.0), segment["name_score"] or 0.0)
        return scores

    def _add(self, name: str, candidate: Candidate) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        kept = self.candidates.setdefault(name, [])
        kept.append(candidate)
        if len(kept) >= 4 * self._settings.images:
            kept.sort()
            del kept[self._settings.images :]

    def ranked(self) -> dict[str, list[Candidate]]:
        """Return the retrieved images of each name, the best first."""
        return {name: sorted(kept)[: self._settings.images] for name, kept in self.candidates.items()}


def features_of(
    out: Storage, wanted: Collection[Candidate], mean: np.ndarray
) -> dict[tuple[LabelShard, int], ImageSegments]:
    """Return the features of images relative to the mean, by label shard and index."""
    of_shard: dict[LabelShard, dict[int, Candidate]] = {}
    for candidate in wanted:
        of_shard.setdefault(candidate.shard, {})[candidate.row] = candidate
    found = {}
    for shard, candidates in sorted(of_shard.items()):
        for row in label_rows(out, shard, ["index", "n_segments", FEATURE_COLUMNS[1]]):
            if row["index"] in candidates:
                stored = stored_features(row).astype(np.float32) - mean.astype(np.float32)
                key = unique_key(candidates[row["index"]])
                found[shard, row["index"]] = ImageSegments(key=key, features=stored)
    return found


def stored_features(row: Mapping[str, Any]) -> np.ndarray:
    """Return the features of a row's segments, float16 [n_segments, 256]. Raises SourceError if they do not fit."""
    data, count = row[FEATURE_COLUMNS[1]] or b"", row["n_segments"]
    if not count or len(data) % (2 * count):
        raise SourceError(f"its {count} segments do not fit {len(data)} bytes of features")
    return np.frombuffer(data, "<f2").reshape(count, -1)


def unique_key(candidate: Candidate) -> str:
    """Return a text that is unique to an image, by which images are ordered. Keys may repeat in a run."""
    return f"{candidate.key}\0{candidate.shard}\0{candidate.row}"


def retrieval_file(
    names: Collection[str], ranked: Mapping[str, list[Candidate]], seeds: Mapping[str, list[Seed]]
) -> bytes:
    """Return retrieval.parquet: the ranked images of each name, with the seed of those that gave one.

    Args:
        names: The names.
        ranked: The images of each name, the best first.
        seeds: The seeds of each name.
    """
    rows = []
    for name in names:
        of_image = {seed.key: seed for seed in seeds[name]}
        for rank, candidate in enumerate(ranked[name]):
            seed = of_image.get(unique_key(candidate))
            rows.append(
                {
                    "name": name,
                    "rank": rank,
                    "shard": str(candidate.shard),
                    "index": candidate.row,
                    "key": candidate.key,
                    "score": -candidate.minus_score,
                    "segment": seed and seed.segment,
                    "support": seed and seed.support,
                }
            )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
