"""The labelled images of a label shard, prepared for export one at a time; every format receives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from diffseg import IGNORE
from diffseg.segmentation import BACKGROUND
from pipeline.exports.names import flat_name, is_plain_path, unique_name
from pipeline.exports.tally import Part, Tally
from pipeline.output.commit import LabelShard
from pipeline.output.levels import RunCut
from pipeline.output.manifest import Manifest
from pipeline.output.portable_image import portable_image
from pipeline.output.reader import is_uncertain, label_rows, selected_keys
from pipeline.output.rows import decode_mask
from pipeline.output.selection import RowSelection, split_of
from pipeline.output.source_images import SourceImageError, SourceImages
from pipeline.readers.file_names import without_image_extension
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

UNNAMED = "segment"
"""Category of segments without a name."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What all tasks of an export share.

    Attributes:
        out: OUT of the run.
        dest: DEST of the export.
        manifest: Manifest of the run.
        license: Licence of the labels for the documents that name one.
        categories: The run's names in their order, followed by any further names of segments, sorted. Their ids count
            from 1, so that they equal the run's class ids; 0 is the background of a run with names.
        copy_images: Whether the export includes the source images.
        jpeg: Whether source images must be JPEGs.
        selection: Rows that are exported.
        val_share: Share of the images that belong to the part `val`; the others belong to `train`.
        min_confidence: Images below this confidence are left out.
        min_segment_confidence: Segments below this confidence become unlabelled.
        image_prefix: Prefix of the source images' URLs in Label Studio.
        cut: Another level of the run's label maps; None exports those of the rows.
    """

    out: Storage
    dest: Storage
    manifest: Manifest
    license: str = "unknown"
    categories: tuple[str, ...] = (UNNAMED,)
    copy_images: bool = False
    jpeg: bool = False
    selection: RowSelection = field(default_factory=RowSelection)
    val_share: float = 0.0
    min_confidence: float = 0.0
    min_segment_confidence: float = 0.0
    image_prefix: str = ""
    cut: RunCut | None = None

    @cached_property
    def category_ids(self) -> dict[str, int]:
        """Category id by name, from 1; 0 is the background."""
        return {BACKGROUND: 0} | {name: number for number, name in enumerate(self.categories, 1)}

    @property
    def is_named(self) -> bool:
        """Whether segments have names, so that their categories mean the same in all images.

        The settings of the run decide; a run whose names come from elsewhere is known by its categories.
        """
        naming = NameSettings(**self.manifest.settings.get("naming", {}))
        return bool(naming) or self.categories != (UNNAMED,)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the values of a class map, from 0."""
        return (BACKGROUND, *self.categories)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the export."""
        return ("train", "val") if self.val_share else ("train",)


@dataclass(frozen=True, kw_only=True)
class ExportTask:
    """One label shard to export.

    Attributes:
        shard: Name of the label shard.
        number: Number of the task, from 0.
        tasks: Number of tasks.
        first_id: Image id of the shard's first row, counted over all shards.
        renamed: Indices of rows whose file name collides with that of another row.
        source: Source shard with the images, if the export includes them.
    """

    shard: LabelShard
    number: int
    tasks: int
    first_id: int
    renamed: frozenset[int]
    source: Shard | None


@dataclass(frozen=True, kw_only=True)
class ExportSegment:
    """A segment of a labelled image.

    Attributes:
        id: Its label in the label map.
        area: Number of pixels.
        bbox: x, y, width and height in pixels.
        confidence: 0 to 1.
        category: Category id from 1; 0 for the background.
        name: Name of the category.
    """

    id: int
    area: int
    bbox: list[int]
    confidence: float
    category: int
    name: str


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image to export, with its labels.

    Attributes:
        id: Image id, counted from 1 over the whole export.
        key: Key of the sample.
        name: Name of its files, without extension.
        path: Path of its files without extension, for formats that mirror the folders of SRC.
        part: Part that it belongs to.
        file: Path of the source image: below SRC, or in the export if source images are included.
        labels: uint16 [H, W], 65535 for pixels in no segment.
        segments: Its segments.
        confidence: 0 to 1.
        source_image: Bytes of the source image, if the export includes source images.
    """

    id: int
    key: str
    name: str
    path: str
    part: Part
    file: str
    labels: np.ndarray
    segments: list[ExportSegment]
    confidence: float
    source_image: bytes | None

    @property
    def things(self) -> list[ExportSegment]:
        """Segments that are not background."""
        return [segment for segment in self.segments if segment.category]


def read_labelled_images(export: Export, task: ExportTask, tally: Tally) -> Iterator[LabelledImage]:
    """Yield the images of a label shard that are exported, one in memory at a time, and count the others."""
    source_images = _source_images(export, task)
    columns = {"key", "index", "status", "mask", "segments", "confidence", *export.selection.columns}
    for row in label_rows(export.out, task.shard, sorted(columns), export.cut):
        if not export.selection.accepts(row):
            tally.counts["not_selected"] += 1
        elif row["status"] != "ok":
            tally.counts[row["status"]] += 1
        elif row["confidence"] < export.min_confidence:
            tally.counts["low_confidence"] += 1
        else:
            try:
                image = _labelled_image(export, task, row, source_images)
            except SourceImageError as error:
                tally.leave_out("no_photograph", row["key"], str(error))
            else:
                tally.parts[image.part] += 1
                yield image


def _source_images(export: Export, task: ExportTask) -> SourceImages | None:
    if not export.copy_images or task.source is None:
        return None
    keys = selected_keys(export.out, task.shard, export.selection, export.cut)
    return SourceImages(task.source, keys, export.out, export.manifest.settings["image_field"])


def _labelled_image(
    export: Export, task: ExportTask, row: Mapping[str, Any], source_images: SourceImages | None
) -> LabelledImage:
    labels = decode_mask(row["mask"])
    kept = [segment for segment in row["segments"] if _is_kept(export, segment)]
    if len(kept) < len(row["segments"]):
        labels = np.where(np.isin(labels, [segment["id"] for segment in kept]), labels, IGNORE).astype(np.uint16)
    index, key = row["index"], row["key"]
    name = unique_name(key, task.shard, index) if index in task.renamed else flat_name(key)
    path = without_image_extension(key) if is_plain_path(key) and index not in task.renamed else name
    source_image, file = None, key if is_plain_path(key) else name
    if export.copy_images:
        if source_images is None:
            raise SourceImageError(f"shard {task.shard} is no longer in SRC; pass its location as --images")
        source_image, extension = portable_image(source_images.read(index, key), labels.shape, jpeg=export.jpeg)
        file = f"{name}.{extension}"
    return LabelledImage(
        id=task.first_id + index,
        key=key,
        name=name,
        path=path,
        part="val" if split_of(key) < export.val_share else "train",
        file=file,
        labels=labels,
        segments=[_segment(export, segment) for segment in kept],
        confidence=row["confidence"],
        source_image=source_image,
    )


def _is_kept(export: Export, segment: Mapping[str, Any]) -> bool:
    return segment["confidence"] >= export.min_segment_confidence and not is_uncertain(segment)


def _segment(export: Export, segment: Mapping[str, Any]) -> ExportSegment:
    name = segment["name"] or UNNAMED
    return ExportSegment(
        id=segment["id"],
        area=segment["area"],
        bbox=segment["bbox"],
        confidence=segment["confidence"],
        category=export.category_ids[name],
        name=name,
    )
