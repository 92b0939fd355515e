"""The row: what is said of one sample, in Parquet and in the JSON of a WebDataset sample alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from diffseg import IGNORE
from diffseg.segmentation import BACKGROUND
from pipeline.readers.samples import Sample

if TYPE_CHECKING:
    from diffseg import Segmentation  # which loads torch; whoever only reads masks need not wait for it

IGNORE_8_BIT = 255
UNNAMED = -1
PNG_LEVEL = 6

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of the input, labelled or not.

    mask: PNG of the label map, 8 bit (ignore 255) or 16 bit (ignore 65535); None unless status is ok.
    height, width: pixels of the decoded image, None where it could not be decoded. Other fields: see the README.
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

    def fields(self) -> dict[str, Any]:
        """Column names to values, in the order of SCHEMA."""
        values = {name: getattr(self, name) for name in SCHEMA.names}
        return values | {"segments": list(self.segments)}


def labelled_row(sample: Sample, shard: str, result: Segmentation, names: Sequence[str] = ()) -> Row:
    """The row of a sample that was segmented. names: the run's vocabulary, which class ids count."""
    height, width = result.labels.shape
    segments = tuple(
        {
            "id": s.id,
            "area": s.area,
            "bbox": list(s.bbox),
            "confidence": _float32(s.confidence),
            "name": s.name,
            "name_score": None if s.name_score is None else _float32(s.name_score),
            "class_id": class_id(s.name, names) if s.name_score is not None else None,
        }
        for s in result.segments
    )
    return Row(
        key=sample.key,
        shard=shard,
        index=sample.index,
        status="ok",
        height=height,
        width=width,
        mask=encode_mask(result.labels),
        n_segments=len(segments),
        segments=segments,
        confidence=_float32(result.confidence),
        meta=sample.meta,
    )


def class_id(name: str | None, names: Sequence[str]) -> int | None:
    """1 for the first of the run's names, 0 for the background, −1 for what has no name and is to be ignored.

    None where names were found in captions, so that there is no list of them to count in.
    """
    if not names:
        return None
    return UNNAMED if name is None else 0 if name == BACKGROUND else 1 + names.index(name)


def _float32(value: float) -> float:
    """The nearest value that a Parquet column of the schema can hold, so that the JSON says the same number."""
    return float(np.float32(value))


def failed_row(
    sample: Sample, shard: str, status: str, error: str, *, size: tuple[int | None, int | None] = (None, None)
) -> Row:
    """The row of a sample that could not be labelled, and why. size: (height, width) in pixels where known."""
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


def encode_mask(labels: np.ndarray) -> bytes:
    """PNG of uint16 [H, W] labels: 8 bit where they fit below 255, else 16 bit; ignore is the type's largest value."""
    claimed = labels[labels != IGNORE]
    if claimed.size == 0 or int(claimed.max()) < IGNORE_8_BIT:
        labels = np.where(labels == IGNORE, IGNORE_8_BIT, labels).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_mask(png: bytes) -> np.ndarray:
    """uint16 [H, W] labels of a mask column's PNG; ignore is 65535 whatever its depth."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        labels = np.asarray(image)
    if labels.dtype == np.uint8:
        return np.where(labels == IGNORE_8_BIT, IGNORE, labels.astype(np.uint16)).astype(np.uint16)
    return labels.astype(np.uint16)
