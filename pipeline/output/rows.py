"""The row of a sample, which has the same fields in Parquet and in the JSON of a WebDataset sample."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from diffseg import IGNORE
from diffseg.segmentation import BACKGROUND
from pipeline.readers.samples import Sample

if TYPE_CHECKING:
    from diffseg import Segmentation  # loads torch, which reading masks does not need
    from diffseg.segmentation import Features, Levels, Segment

IGNORE_8_BIT = 255
"""Value of ignored pixels in an 8-bit mask."""
UNNAMED = -1
"""Class id of a segment that has no name and is to be ignored."""
PNG_LEVEL = 6
"""zlib compression level of masks, 0 to 9."""

SEGMENT = pa.struct(
    [
        ("id", pa.int32()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("confidence", pa.float32()),
        ("name", pa.string()),
        ("name_score", pa.float32()),
        ("class_id", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask", pa.large_binary()),
        ("n_segments", pa.int32()),
        ("segments", pa.list_(SEGMENT)),
        ("confidence", pa.float32()),
        ("meta", pa.string()),
    ]
)

LEVEL_FIELDS = (
    pa.field("leaf_mask", pa.large_binary()),
    pa.field("leaves", pa.list_(pa.struct([("segment", pa.int32()), ("confidence", pa.float32())]))),
    pa.field(
        "merges",
        pa.list_(
            pa.struct([("a", pa.int32()), ("b", pa.int32()), ("height", pa.float32()), ("confidence", pa.float32())])
        ),
    ),
)
"""Further columns of a run with levels, which `pipeline.output.levels` describes."""

FEATURE_COLUMNS = ("image_feature", "segment_features")
"""Further columns of a run with features: little-endian float16 [256] of the image and [n_segments, 256] of its
segments in their order; null unless the status is ok."""


QUALITY_COLUMNS = ("within_rho", "between_rho")
"""Further columns of a run with a score of quality, see `diffseg.variants.correlation`; null unless the status is ok,
and where a label map has no such pairs of positions."""

GENERATED_FIELDS = (
    pa.field("image", pa.large_binary()),
    pa.field("prompt", pa.string()),
    pa.field("generation_seed", pa.int64()),
    pa.field("steps", pa.int32()),
    pa.field("guidance", pa.float32()),
    pa.field("classes", pa.list_(pa.string())),
    pa.field("threshold", pa.list_(pa.float32())),
    pa.field("agree_iou", pa.list_(pa.float32())),
)
"""Further columns of a run that generated its images, see docs/generate.md. `threshold` and `agree_iou` have one value
for each of `classes`. The image is null, and the lists of values are empty, unless the status is ok."""


def schema_of(
    *, levels: bool = False, features: bool = False, quality: bool = False, generated: bool = False
) -> pa.Schema:
    """Return the columns of a label shard."""
    more = [*(LEVEL_FIELDS if levels else ())]
    more += [pa.field(name, pa.large_binary()) for name in FEATURE_COLUMNS if features]
    more += [pa.field(name, pa.float32()) for name in QUALITY_COLUMNS if quality]
    more += [*(GENERATED_FIELDS if generated else ())]
    return pa.schema([*SCHEMA, *more]) if more else SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of the input, labelled or not. docs/how-it-works.md describes every column.

    Attributes:
        key: Key of the sample in its shard.
        shard: Name of the shard.
        index: Position of the sample in the shard, from 0.
        status: One of `pipeline.readers.samples.STATUSES`.
        error: Why the sample has no mask, "" if the status is ok.
        height: Height of the decoded image in pixels; None if it could not be decoded.
        width: Width of the decoded image in pixels; None if it could not be decoded.
        mask: PNG of the label map, 8 bit (255 is ignored) or 16 bit (65535 is ignored); None unless the status is ok.
        n_segments: Number of segments.
        segments: The segments as values of `SEGMENT`.
        confidence: Confidence of the label map, 0 to 1; None unless the status is ok.
        meta: JSON object of the sample's JSON and text fields, "" if it has none.
        leaf_mask: PNG of the numbers of leaves within their segments; None unless the status is ok and the run has
            levels.
        leaves: The leaves as values of `LEVEL_FIELDS`.
        merges: The merges as values of `LEVEL_FIELDS`.
        image_feature: Feature of the image, see `FEATURE_COLUMNS`; None unless the run has features.
        segment_features: Features of its segments.
        within_rho: Mean correlation of positions of one segment, −1 to 1, see `QUALITY_COLUMNS`; None unless the run
            has a score of quality.
        between_rho: Mean correlation of positions of different segments.
        image: The generated image, encoded; None unless the status is ok and the run generated its images.
        prompt: What the image was generated from. Without generated images, it and the next columns are empty.
        generation_seed: Seed of the noise that the generation started from.
        steps: Steps of the generation.
        guidance: Scale of the guidance.
        classes: Classes that the label map may have.
        threshold: For each class, the value above which its refined map became a mask.
        agree_iou: For each class, the IoU of the raw and the refined map at that threshold, 0 to 1.
    """

    key: str
    shard: str
    index: int
    status: str
    error: str = ""
    height: int | None = None
    width: int | None = None
    mask: bytes | None = None
    n_segments: int = 0
    segments: tuple[dict[str, Any], ...] = ()
    confidence: float | None = None
    meta: str = ""
    leaf_mask: bytes | None = None
    leaves: tuple[dict[str, Any], ...] = ()
    merges: tuple[dict[str, Any], ...] = ()
    image_feature: bytes | None = None
    segment_features: bytes | None = None
    within_rho: float | None = None
    between_rho: float | None = None
    image: bytes | None = None
    prompt: str | None = None
    generation_seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    classes: tuple[str, ...] = ()
    threshold: tuple[float, ...] = ()
    agree_iou: tuple[float, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Row:
        """Return the row with these values by column name, as a label shard holds them."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    def fields(self, **further: bool) -> dict[str, Any]:
        """Return the values by column name, in the order of `schema_of` with the same further columns."""
        names = schema_of(**further).names
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def labelled_row(sample: Sample, shard: str, result: Segmentation, names: Sequence[str] = ()) -> Row:
    """Return the row of a sample that was segmented.

    Args:
        sample: The sample.
        shard: Name of its shard.
        result: Its segmentation.
        names: The run's vocabulary, which class ids refer to.
    """
    height, width = result.labels.shape
    segments = segment_values(result.segments, names)
    row = Row(
        key=sample.key,
        shard=shard,
        index=sample.index,
        status="ok",
        height=height,
        width=width,
        mask=encode_mask(result.labels),
        n_segments=len(segments),
        segments=segments,
        confidence=float32(result.confidence),
        meta=sample.meta,
        within_rho=None if result.within_rho is None else float32(result.within_rho),
        between_rho=None if result.between_rho is None else float32(result.between_rho),
    )
    if result.features is not None:
        row = replace(row, **feature_values(result.features))
    return row if result.levels is None else replace(row, **level_values(result.levels))


def segment_values(segments: Sequence[Segment], names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Return segments as values of `SEGMENT`; class ids refer to the run's vocabulary `names`."""
    return tuple(
        {
            "id": segment.id,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "confidence": float32(segment.confidence),
            "name": segment.name,
            "name_score": None if segment.name_score is None else float32(segment.name_score),
            "class_id": class_id(segment.name, names) if segment.name_score is not None else None,
        }
        for segment in segments
    )


def class_id(name: str | None, names: Sequence[str]) -> int | None:
    """Return the class id of a segment's name.

    Args:
        name: Name of the segment; None if its best score lies between the two thresholds.
        names: The run's vocabulary; empty if names are taken from captions.

    Returns:
        1 for the first name of the vocabulary and so on, 0 for the background, -1 (`UNNAMED`) for a segment to be
        ignored; None without a vocabulary.
    """
    if not names:
        return None
    return UNNAMED if name is None else 0 if name == BACKGROUND else 1 + names.index(name)


def float32(value: float) -> float:
    """Round to float32, the type of the Parquet columns, so that the JSON holds the same number."""
    return float(np.float32(value))


def failed_row(
    sample: Sample, shard: str, status: str, error: str, *, size: tuple[int | None, int | None] = (None, None)
) -> Row:
    """Return the row of a sample that could not be labelled.

    Args:
        sample: The sample.
        shard: Name of its shard.
        status: The kind of failure.
        error: The reason, for people.
        size: Height and width of the image in pixels, if known.
    """
    return Row(
        key=sample.key,
        shard=shard,
        index=sample.index,
        status=status,
        error=error,
        height=size[0],
        width=size[1],
        meta=sample.meta,
    )


def level_values(levels: Levels) -> dict[str, Any]:
    """Return the level columns of a row, see `LEVEL_FIELDS`."""
    buffer = io.BytesIO()
    Image.fromarray(levels.numbers).save(buffer, "PNG", compress_level=9)  # it is small, so this takes no time
    return {
        "leaf_mask": buffer.getvalue(),
        "leaves": tuple(
            {"segment": segment, "confidence": confidence}
            for segment, confidence in zip(
                levels.segment_of_leaf.tolist(), levels.leaf_confidences.tolist(), strict=True
            )
        ),
        "merges": tuple(
            {"a": a, "b": b, "height": height, "confidence": confidence}
            for (a, b), height, confidence in zip(
                levels.pairs.tolist(), levels.heights.tolist(), levels.confidences.tolist(), strict=True
            )
        ),
    }


def feature_values(features: Features) -> dict[str, Any]:
    """Return the feature columns of a row, see `FEATURE_COLUMNS`."""
    values = zip(FEATURE_COLUMNS, (features.image, features.segments), strict=True)
    return {name: array.astype("<f2").tobytes() for name, array in values}


def encode_mask(labels: np.ndarray) -> bytes:
    """Encode labels, uint16 [H, W], as a PNG.

    The PNG has 8 bits if all labels are below 255, else 16 bits. The type's largest value marks ignored pixels.
    """
    claimed = labels[labels != IGNORE]
    if claimed.size == 0 or int(claimed.max()) < IGNORE_8_BIT:
        labels = np.where(labels == IGNORE, IGNORE_8_BIT, labels).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_mask(png: bytes) -> np.ndarray:
    """Decode the PNG of a mask column to labels, uint16 [H, W]. Ignored pixels are 65535 at either bit depth."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        labels = np.asarray(image)
    if labels.dtype == np.uint8:
        return np.where(labels == IGNORE_8_BIT, IGNORE, labels.astype(np.uint16)).astype(np.uint16)
    return labels.astype(np.uint16)
