"""Label Studio: tasks with brush predictions, one file per label shard, and the labelling interface they need."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from diffseg.drawing.overlay import class_colour, hexadecimal
from pipeline.exports.assemble import Fragments, Lines, write_source_image
from pipeline.exports.items import Export, ExportSegment, ExportTask, LabelledImage
from pipeline.exports.rle import brush_bytes
from pipeline.exports.tally import Tally
from pipeline.readers.file_names import stem_of
from pipeline.storage import Storage, scheme
from pipeline.storage.folder import is_local

BRUSH, IMAGE = "brush", "image"
LOCAL_FILES = "/data/local-files/?d="
"""URL path at which the web server of Label Studio serves local files; a path below its document root follows."""


@dataclass(frozen=True)
class LocalStorage:
    """The settings of Label Studio with which it finds the images of the tasks.

    Attributes:
        prefix: Text before the path of each image in the tasks.
        document_root: Local folder below which Label Studio serves files; "" if the images are not in a local folder.
        path: Local folder of the images, which a project needs as its storage.
    """

    prefix: str = LOCAL_FILES
    document_root: str = ""
    path: str = ""


def local_storage(source: Storage, dest: Storage, *, copy_images: bool) -> LocalStorage:
    """Return the settings for the images of an export. The storage of a project must lie below the document root.

    Args:
        source: SRC of the run, or where its images are now.
        dest: DEST of the export.
        copy_images: Whether the export includes the source images.
    """
    if copy_images and is_local(dest):
        return LocalStorage(f"{LOCAL_FILES}images/", dest.url, os.path.join(dest.url, "images"))
    if not copy_images and is_local(source) and os.path.isdir(source.url):
        root, name = os.path.split(source.url)
        return LocalStorage(f"{LOCAL_FILES}{quote(name)}/", root, source.url)
    return LocalStorage()


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write tasks/<shard>.json, which Label Studio imports as it is."""
    tasks = []
    for image in images:
        write_source_image(export, image)
        tasks.append(json.dumps(_labelling_task(export, image), separators=(",", ":")))
        tally.counts["exported"] += 1
    if tasks:
        export.dest.write_bytes(f"tasks/{task.shard}.json", f"[{','.join(tasks)}]\n".encode())
    return {}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of interface.xml, the labelling interface with all categories."""
    labels = "\n".join(
        f'    <Label value={quoteattr(name)} background="{hexadecimal(class_colour(name))}"/>'
        for name in export.categories
    )
    text = (
        f'<View>\n  <Image name="{IMAGE}" value="$image"/>\n'
        f'  <BrushLabels name="{BRUSH}" toName="{IMAGE}">\n{labels}\n  </BrushLabels>\n</View>\n'
    )
    yield "interface.xml", iter([text.encode()])


def _labelling_task(export: Export, image: LabelledImage) -> dict[str, Any]:
    # Paths in http URLs must be percent-encoded; those of s3:// and other stores must not.
    file = quote(image.file) if scheme(export.image_prefix) in ("", "http", "https") else image.file
    prediction = {
        "model_version": "diffseg",
        "score": image.confidence,
        "result": [_region(image, segment) for segment in image.things],
    }
    data = {"image": export.image_prefix + file, "key": image.key, "stem": stem_of(image.key)}
    if export.val_share:
        data["part"] = image.part
    return {"data": data, "predictions": [prediction]}


def _region(image: LabelledImage, segment: ExportSegment) -> dict[str, Any]:
    height, width = image.labels.shape
    return {
        "id": f"segment-{segment.id}",
        "type": "brushlabels",
        "from_name": BRUSH,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": segment.confidence,
        "value": {"format": "rle", "rle": brush_bytes(image.labels == segment.id), "brushlabels": [segment.name]},
    }
