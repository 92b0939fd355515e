"""COCO: panoptic (one PNG of segment ids per image, and one JSON), and instances (one JSON with compressed runs)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from diffseg import IGNORE
from pipeline.exports.assemble import Fragments, Lines, write_source_image
from pipeline.exports.items import Export, ExportTask, LabelledImage, Tally
from pipeline.exports.rle import coco_counts

PNG_FOLDER = "panoptic"
ANNOTATIONS_PER_IMAGE = 2**16
"""Annotation ids reserved for each image; more than any label map has segments."""


def write_panoptic(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write PNGs of segment ids, and return lines of `images` and `annotations`.

    A pixel encodes its label + 1 as R + 256 G + 65536 B, and 0 where it has no segment.
    """
    image_records, annotations = [], []
    for image in images:
        write_source_image(export, image)
        export.dest.write_bytes(f"{PNG_FOLDER}/{image.name}.png", _panoptic_png(image))
        image_records.append(_image_record(image))
        segments = [
            {
                "id": segment.id + 1,
                "category_id": segment.category,
                "area": segment.area,
                "bbox": segment.bbox,
                "iscrowd": 0,
                "score": segment.confidence,
            }
            for segment in image.things
        ]
        annotations.append({"image_id": image.id, "file_name": f"{image.name}.png", "segments_info": segments})
        tally.counts["exported"] += 1
    return {"images": _lines(image_records), "annotations": _lines(annotations)}


def write_instances(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Return lines of `images` and `annotations`."""
    image_records, annotations = [], []
    for image in images:
        write_source_image(export, image)
        image_records.append(_image_record(image))
        height, width = image.labels.shape
        annotations += [
            {
                "id": image.id * ANNOTATIONS_PER_IMAGE + segment.id,
                "image_id": image.id,
                "category_id": segment.category,
                "segmentation": {"size": [height, width], "counts": coco_counts(image.labels == segment.id)},
                "area": segment.area,
                "bbox": segment.bbox,
                "iscrowd": 0,
                "score": segment.confidence,
            }
            for segment in image.things
        ]
        tally.counts["exported"] += 1
    return {"images": _lines(image_records), "annotations": _lines(annotations)}


def panoptic_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of panoptic.json."""
    yield "panoptic.json", _document(export, fragments)


def instances_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of instances.json."""
    yield "instances.json", _document(export, fragments)


def _document(export: Export, fragments: Fragments) -> Iterator[bytes]:
    categories = [{"id": i, "name": name, "isthing": 1} for i, name in enumerate(export.categories, 1)]
    yield f'{{"info": {{}}, "licenses": [],\n"categories": {json.dumps(categories)}'.encode()
    for name in ("images", "annotations"):
        yield f',\n"{name}": [\n'.encode()
        for number, line in enumerate(fragments.lines(name)):
            yield b",\n" + line if number else line
        yield b"\n]"
    yield b"}\n"


def _image_record(image: LabelledImage) -> dict[str, Any]:
    height, width = image.labels.shape
    return {"id": image.id, "file_name": image.file, "width": width, "height": height, "key": image.key}


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _panoptic_png(image: LabelledImage) -> bytes:
    table = np.zeros(IGNORE + 1, np.uint32)
    things = [segment.id for segment in image.things]
    table[things] = np.array(things, np.uint32) + 1
    ids = table[image.labels]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
