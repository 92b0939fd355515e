"""CVAT: "CVAT for images 1.1", one XML with masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

from diffseg.drawing.overlay import class_colour, hexadecimal
from pipeline.exports.assemble import Fragments, Lines, key_line, keys_file, write_photograph
from pipeline.exports.items import Export, Item, Part, Segment, Tally
from pipeline.exports.rle import cvat_counts


def write_part(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """Lines of images and keys."""
    images, keys = [], []
    for item in items:
        write_photograph(export, item)
        height, width = item.labels.shape
        masks = "".join(_mask(item, segment) for segment in item.things)
        head = f'<image id="{item.id}" name={quoteattr(item.file)} width="{width}" height="{height}">'
        images.append(f"{head}{masks}</image>\n".encode())
        keys.append(key_line(item))
        tally.counts["exported"] += 1
    return {"images": b"".join(images), "keys": b"".join(keys)}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """annotations.xml, and the keys."""
    yield "annotations.xml", _document(export, fragments)
    yield keys_file(fragments)


def _document(export: Export, fragments: Fragments) -> Iterator[bytes]:
    labels = "".join(
        f"<label><name>{escape(name)}</name><color>{hexadecimal(class_colour(name))}</color><type>mask</type></label>"
        for name in export.categories
    )
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta><task><name>diffseg</name><mode>annotation</mode><labels>{labels}</labels></task></meta>\n"
    ).encode()
    for line in fragments.lines("images"):
        yield line + b"\n"
    yield b"</annotations>\n"


def _mask(item: Item, segment: Segment) -> str:
    left, top, width, height = segment.bbox
    mask = item.labels[top : top + height, left : left + width] == segment.id
    return (
        f'<mask label={quoteattr(segment.name)} source="auto" occluded="0" rle="{cvat_counts(mask)}" left="{left}" '
        f'top="{top}" width="{width}" height="{height}" z_order="0"></mask>'
    )
