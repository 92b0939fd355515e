"""Label Studio: tasks with brush predictions, a file a label shard, and the labelling interface that they need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from diffseg.drawing.overlay import class_colour, hexadecimal
from pipeline.exports.assemble import Fragments, Lines, write_photograph
from pipeline.exports.items import Export, Item, Part, Segment, Tally
from pipeline.exports.rle import brush_bytes
from pipeline.storage import scheme

BRUSH, IMAGE = "brush", "image"


def write_part(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """tasks/<shard>.json, to be imported as it is."""
    tasks = []
    for item in items:
        write_photograph(export, item)
        tasks.append(json.dumps(_task(export, item), separators=(",", ":")))
        tally.counts["exported"] += 1
    if tasks:
        export.dest.write_bytes(f"tasks/{part.shard}.json", f"[{','.join(tasks)}]\n".encode())
    return {}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """interface.xml: the labelling interface, with all categories."""
    labels = "\n".join(
        f'    <Label value={quoteattr(name)} background="{hexadecimal(class_colour(name))}"/>'
        for name in export.categories
    )
    text = (
        f'<View>\n  <Image name="{IMAGE}" value="$image"/>\n'
        f'  <BrushLabels name="{BRUSH}" toName="{IMAGE}">\n{labels}\n  </BrushLabels>\n</View>\n'
    )
    yield "interface.xml", iter([text.encode()])


def _task(export: Export, item: Item) -> dict[str, Any]:
    # In a web address a name must be quoted; in s3:// and its like it stands as it is.
    file = quote(item.file) if scheme(export.image_prefix) in ("", "http", "https") else item.file
    prediction = {
        "model_version": "diffseg",
        "score": item.confidence,
        "result": [_region(item, segment) for segment in item.things],
    }
    return {"data": {"image": export.image_prefix + file, "key": item.key}, "predictions": [prediction]}


def _region(item: Item, segment: Segment) -> dict[str, Any]:
    height, width = item.labels.shape
    return {
        "id": f"segment-{segment.id}",
        "type": "brushlabels",
        "from_name": BRUSH,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": segment.confidence,
        "value": {"format": "rle", "rle": brush_bytes(item.labels == segment.id), "brushlabels": [segment.name]},
    }
