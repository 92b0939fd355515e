"""What every format is given: the labelled images of a label shard, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from diffseg import IGNORE
from diffseg.segmentation import BACKGROUND
from pipeline.exports.names import flat_name, is_plain_path, place_name
from pipeline.exports.photographs import for_any_reader
from pipeline.output.reader import is_uncertain, label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import SourceImageError, SourceImages
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

UNNAMED = "segment"
"""The category of segments without a name."""

PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Export:
    """What every part of an export is told.

    categories: the run's names in their order, as class ids count them, or else all that segments have, sorted; their
    ids count from 1, and 0 is the background of a run with names. photographs: whether they are written beside. jpeg:
    as JPEG in any case. min_confidence: images below it are left out; segments below min_segment_confidence become
    unlabelled. image_prefix: of the photographs' URLs in Label Studio.
    """

    out: Storage
    dest: Storage
    image_field: str | None
    categories: tuple[str, ...] = (UNNAMED,)
    photographs: bool = False
    jpeg: bool = False
    min_confidence: float = 0.0
    min_segment_confidence: float = 0.0
    image_prefix: str = ""

    @cached_property
    def category_ids(self) -> dict[str, int]:
        """By name, from 1; 0 is the background."""
        return {BACKGROUND: 0} | {name: number for number, name in enumerate(self.categories, 1)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One label shard. first_id: number of its first image, of all. renamed: rows whose name another image has as well.

    source: the shard that was labelled, where photographs are asked for.
    """

    shard: str
    number: int
    parts: int
    first_id: int
    renamed: frozenset[int]
    source: Shard | None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """As in the row. id: its label. bbox: x, y, width, height in pixels. category: id from 1, 0 for background."""

    id: int
    area: int
    bbox: list[int]
    confidence: float
    category: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled image.

    id: its number in the export, from 1. name: of its files, without extension. file: path of the photograph, below
    images/ where that is written. labels: uint16 [H, W]. photograph: stored bytes, where they are asked for.
    """

    id: int
    key: str
    name: str
    file: str
    labels: np.ndarray
    segments: list[Segment]
    confidence: float
    photograph: bytes | None

    @property
    def things(self) -> list[Segment]:
        """Segments that are not background."""
        return [segment for segment in self.segments if segment.category]


@dataclass
class Tally:
    """counts: rows by what became of them, `exported` among them. problems: (key, why) of the first in error."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, what: str, key: str, why: str) -> None:
        """Count a row that should have been exported and is not."""
        self.counts[what] += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append((key, why))


def read_items(export: Export, part: Part, tally: Tally) -> Iterator[Item]:
    """The images of a label shard that are to be exported, one in memory at a time; the others are counted."""
    photographs = _photographs(export, part)
    for row in label_rows(export.out, part.shard, ("key", "index", "status", "mask", "segments", "confidence")):
        if row["status"] != "ok":
            tally.counts[row["status"]] += 1
        elif row["confidence"] < export.min_confidence:
            tally.counts["low_confidence"] += 1
        else:
            try:
                item = _item(export, part, row, photographs)
            except SourceImageError as error:
                tally.leave_out("no_photograph", row["key"], str(error))
            else:
                yield item


def _photographs(export: Export, part: Part) -> SourceImages | None:
    if not export.photographs or part.source is None:
        return None
    rows = {row["index"] for row in label_rows(export.out, part.shard, ("index", "status")) if row["status"] == "ok"}
    return SourceImages(part.source, rows, export.out, export.image_field)


def _item(export: Export, part: Part, row: Mapping[str, Any], photographs: SourceImages | None) -> Item:
    labels = decode_mask(row["mask"])
    kept = [segment for segment in row["segments"] if _is_kept(export, segment)]
    if len(kept) < len(row["segments"]):
        labels = np.where(np.isin(labels, [segment["id"] for segment in kept]), labels, IGNORE).astype(np.uint16)
    index, key = row["index"], row["key"]
    name = place_name(key, part.shard, index) if index in part.renamed else flat_name(key)
    photograph, file = None, key if is_plain_path(key) else name
    if export.photographs:
        if photographs is None:
            raise SourceImageError(f"shard {part.shard} is not in SRC any more; --images says where it lies now")
        photograph, extension = for_any_reader(photographs.read(index, key), labels.shape, jpeg=export.jpeg)
        file = f"{name}.{extension}"
    return Item(
        id=part.first_id + index,
        key=key,
        name=name,
        file=file,
        labels=labels,
        segments=[_segment(export, segment) for segment in kept],
        confidence=row["confidence"],
        photograph=photograph,
    )


def _is_kept(export: Export, segment: Mapping[str, Any]) -> bool:
    return segment["confidence"] >= export.min_segment_confidence and not is_uncertain(segment)


def _segment(export: Export, segment: Mapping[str, Any]) -> Segment:
    name = segment["name"] or UNNAMED
    return Segment(
        id=segment["id"],
        area=segment["area"],
        bbox=segment["bbox"],
        confidence=segment["confidence"],
        category=export.category_ids[name],
        name=name,
    )
