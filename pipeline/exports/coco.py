"""COCO: panoptic (one PNG of segment ids per image, and one JSON), and instances (one JSON with compressed runs).

The layout is that of COCO itself, which importers look for: annotations/instances_train.json and images/train/.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from diffseg import IGNORE
from pipeline.exports.assemble import Fragments, LineLists, Lines, write_source_image
from pipeline.exports.items import Export, ExportTask, LabelledImage
from pipeline.exports.rle import coco_counts
from pipeline.exports.tally import Part, Tally
from pipeline.readers.file_names import stem_of

LICENSE_ID = 1
ANNOTATIONS_PER_IMAGE = 2**16
"""Annotation ids reserved for each image; more than any label map has segments."""


def write_panoptic(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write PNGs of segment ids, and return lines of `images` and `annotations`.

    A pixel encodes its label + 1 as R + 256 G + 65536 B, and 0 where it has no segment.
    """
    lines = LineLists()
    for image in images:
        write_source_image(export, image, f"images/{image.part}")
        export.dest.write_bytes(f"annotations/panoptic_{image.part}/{image.name}.png", _panoptic_png(image))
        lines.add(f"{image.part}-images", json.dumps(_image_record(image)))
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
        annotation = {"image_id": image.id, "file_name": f"{image.name}.png", "segments_info": segments}
        lines.add(f"{image.part}-annotations", json.dumps(annotation))
        tally.counts["exported"] += 1
    return lines.lines()


def write_instances(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Return lines of `images` and `annotations`."""
    lines = LineLists()
    for image in images:
        write_source_image(export, image, f"images/{image.part}")
        lines.add(f"{image.part}-images", json.dumps(_image_record(image)))
        height, width = image.labels.shape
        for segment in image.things:
            annotation = {
                "id": image.id * ANNOTATIONS_PER_IMAGE + segment.id,
                "image_id": image.id,
                "category_id": segment.category,
                "segmentation": {"size": [height, width], "counts": coco_counts(image.labels == segment.id)},
                "area": segment.area,
                "bbox": segment.bbox,
                "iscrowd": 0,
                "score": segment.confidence,
            }
            lines.add(f"{image.part}-annotations", json.dumps(annotation))
        tally.counts["exported"] += 1
    return lines.lines()


def panoptic_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of annotations/panoptic_train.json, and of the same for `val`."""
    for part in export.parts:
        yield f"annotations/panoptic_{part}.json", _document(export, fragments, part)


def instances_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of annotations/instances_train.json, and of the same for `val`."""
    for part in export.parts:
        yield f"annotations/instances_{part}.json", _document(export, fragments, part)


def _document(export: Export, fragments: Fragments, part: Part) -> Iterator[bytes]:
    info = {
        "description": f"Segmentation labels made by diffseg ({export.manifest.settings['model']}), {part}",
        "version": export.manifest.fingerprint,
        "contributor": "diffseg-pipeline",
    }
    licenses = [{"id": LICENSE_ID, "name": export.license, "url": ""}]
    categories = [{"id": i, "name": name, "isthing": 1} for i, name in enumerate(export.categories, 1)]
    head = {"info": info, "licenses": licenses, "categories": categories}
    yield json.dumps(head).removesuffix("}").encode()
    for name in ("images", "annotations"):
        yield f',\n"{name}": [\n'.encode()
        for number, line in enumerate(fragments.lines(f"{part}-{name}")):
            yield b",\n" + line if number else line
        yield b"\n]"
    yield b"}\n"


def _image_record(image: LabelledImage) -> dict[str, Any]:
    height, width = image.labels.shape
    return {
        "id": image.id,
        "file_name": image.file,
        "width": width,
        "height": height,
        "license": LICENSE_ID,
        "key": image.key,
        "stem": stem_of(image.key),
    }


def _panoptic_png(image: LabelledImage) -> bytes:
    table = np.zeros(IGNORE + 1, np.uint32)
    things = [segment.id for segment in image.things]
    table[things] = np.array(things, np.uint32) + 1
    ids = table[image.labels]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
