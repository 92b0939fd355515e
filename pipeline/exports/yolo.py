"""Ultralytics' instance segmentation: a text file for each image, with one polygon in each line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.exports.assemble import Fragments, LineLists, Lines, key_line, keys_file, write_source_image
from pipeline.exports.items import Export, ExportSegment, ExportTask, LabelledImage
from pipeline.exports.polygons import mask_iou, mask_polygon, polygon_mask
from pipeline.exports.semantic import data_yaml
from pipeline.exports.tally import Tally


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write images/ and labels/, and return lines of polygons.csv and of keys."""
    lines = LineLists()
    for image in images:
        write_source_image(export, image, f"images/{image.part}")
        texts = []
        for segment in image.things:
            text, iou = _line(image, segment)
            texts.append(text)
            tally.add_polygon(iou)
            lines.add("polygons", f"{image.name},{segment.id},{segment.area},{iou:.4f}")
        export.dest.write_bytes(f"labels/{image.part}/{image.name}.txt", "".join(texts).encode())
        lines.add("keys", key_line(image))
        tally.counts["exported"] += 1
    return lines.lines()


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of data.yaml, of polygons.csv with the IoU of each mask and its polygon, and keys.csv."""

    def polygons() -> Iterator[bytes]:
        yield b"name,segment,area,iou\n"
        for line in fragments.lines("polygons"):
            yield line + b"\n"

    yield "data.yaml", iter([data_yaml(export, export.categories)])
    yield "polygons.csv", polygons()
    yield keys_file(fragments)


def _line(image: LabelledImage, segment: ExportSegment) -> tuple[str, float]:
    """Return the line of a segment, and the IoU of its mask with the polygon."""
    left, top, box_width, box_height = segment.bbox
    height, width = image.labels.shape
    mask = image.labels[top : top + box_height, left : left + box_width] == segment.id
    polygon = mask_polygon(mask)
    # Coordinates are shares of the image's size. With a quarter of a pixel added, readers that cut decimals off
    # (Ultralytics) and readers that round (supervision) come back to the same pixel.
    shares = (polygon + np.array([left + 0.25, top + 0.25])) / [width, height]
    numbers = " ".join(f"{share:.6g}" for share in shares.ravel().tolist())
    return f"{segment.category - 1} {numbers}\n", mask_iou(mask, polygon_mask(polygon, mask.shape))
