"""Rows and their masks."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffseg import IGNORE, Segment, Segmentation
from pipeline.output.rows import SCHEMA, Row, decode_mask, encode_mask, failed_row, labelled_row
from pipeline.readers.samples import Sample


@pytest.mark.parametrize(
    ("labels", "depth"),
    [(1, "uint8"), (255, "uint8"), (256, "uint16"), (300, "uint16")],
)
def test_masks_keep_every_label_and_the_ignored_pixels(labels: int, depth: str) -> None:
    original = np.arange(400, dtype=np.uint16).reshape(20, 20) % labels
    original[0] = IGNORE
    png = encode_mask(original)
    with Image.open(io.BytesIO(png)) as image:
        assert np.asarray(image).dtype == depth
        assert np.asarray(image)[0, 0] == (255 if depth == "uint8" else 65535)
    assert np.array_equal(decode_mask(png), original)


def test_a_mask_of_ignored_pixels_alone_survives() -> None:
    original = np.full((4, 5), IGNORE, dtype=np.uint16)
    assert np.array_equal(decode_mask(encode_mask(original)), original)


def test_a_labelled_row_holds_the_segmentation() -> None:
    labels = np.zeros((7, 9), dtype=np.uint16)
    labels[2:, 3:] = 1
    segments = (
        Segment(id=0, area=33, bbox=(0, 0, 9, 7), confidence=0.5),
        Segment(id=1, area=30, bbox=(3, 2, 6, 5), confidence=0.25),
    )
    sample = Sample(index=4, key="a/b", image=b"", meta='{"txt": "x"}')
    row = labelled_row(sample, "shard", Segmentation(labels=labels, segments=segments, confidence=0.375))
    assert (row.key, row.shard, row.index, row.status, row.meta) == ("a/b", "shard", 4, "ok", '{"txt": "x"}')
    assert (row.height, row.width, row.n_segments, row.confidence) == (7, 9, 2, 0.375)
    assert row.segments[1]["bbox"] == [3, 2, 6, 5]
    assert row.mask is not None
    assert np.array_equal(decode_mask(row.mask), labels)


def test_the_fields_of_a_row_are_the_columns_of_the_schema() -> None:
    row = failed_row(Sample(index=0, key="k", image=None), "s", "undecodable", "why")
    assert list(row.fields()) == SCHEMA.names
    assert row.fields()["mask"] is None
    assert row.fields()["error"] == "why"
    assert isinstance(row, Row)
