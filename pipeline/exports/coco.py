"""COCO: panoptic (a PNG of segment ids an image and one JSON), and instances (one JSON with compressed run lengths)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from diffseg import IGNORE
from pipeline.exports.assemble import Fragments, Lines, write_photograph
from pipeline.exports.items import Export, Item, Part, Tally
from pipeline.exports.rle import coco_counts

PNG_FOLDER = "panoptic"
ANNOTATIONS_AN_IMAGE = 2**16


def write_panoptic(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """PNGs of label + 1 as R + 256 G + 65536 B, 0 where there is none; lines of `images` and `annotations`."""
    images, annotations = [], []
    for item in items:
        write_photograph(export, item)
        export.dest.write_bytes(f"{PNG_FOLDER}/{item.name}.png", _panoptic_png(item))
        images.append(_image(item))
        segments = [
            {
                "id": segment.id + 1,
                "category_id": segment.category,
                "area": segment.area,
                "bbox": segment.bbox,
                "iscrowd": 0,
                "score": segment.confidence,
            }
            for segment in item.things
        ]
        annotations.append({"image_id": item.id, "file_name": f"{item.name}.png", "segments_info": segments})
        tally.counts["exported"] += 1
    return {"images": _lines(images), "annotations": _lines(annotations)}


def write_instances(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """Lines of `images` and `annotations`."""
    images, annotations = [], []
    for item in items:
        write_photograph(export, item)
        images.append(_image(item))
        height, width = item.labels.shape
        annotations += [
            {
                "id": item.id * ANNOTATIONS_AN_IMAGE + segment.id,
                "image_id": item.id,
                "category_id": segment.category,
                "segmentation": {"size": [height, width], "counts": coco_counts(item.labels == segment.id)},
                "area": segment.area,
                "bbox": segment.bbox,
                "iscrowd": 0,
                "score": segment.confidence,
            }
            for segment in item.things
        ]
        tally.counts["exported"] += 1
    return {"images": _lines(images), "annotations": _lines(annotations)}


def panoptic_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """panoptic.json of all lines."""
    yield "panoptic.json", _document(export, fragments)


def instances_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """instances.json of all lines."""
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


def _image(item: Item) -> dict[str, Any]:
    height, width = item.labels.shape
    return {"id": item.id, "file_name": item.file, "width": width, "height": height, "key": item.key}


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _panoptic_png(item: Item) -> bytes:
    table = np.zeros(IGNORE + 1, np.uint32)
    things = [segment.id for segment in item.things]
    table[things] = np.array(things, np.uint32) + 1
    ids = table[item.labels]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
