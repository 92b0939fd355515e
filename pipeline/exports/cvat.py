"""CVAT: the format "CVAT for images 1.1", one XML file with masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

from diffseg.drawing.overlay import class_colour, hexadecimal
from pipeline.exports.assemble import Fragments, LineLists, Lines, key_line, keys_file, write_source_image
from pipeline.exports.items import Export, ExportSegment, ExportTask, LabelledImage
from pipeline.exports.rle import cvat_counts
from pipeline.exports.tally import Tally


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Return lines of images and of keys."""
    lines = LineLists()
    for image in images:
        write_source_image(export, image)
        height, width = image.labels.shape
        masks = "".join(_mask(image, segment) for segment in image.things)
        subset = f' subset="{image.part}"' * bool(export.val_share)
        head = f'<image id="{image.id}" name={quoteattr(image.file)}{subset} width="{width}" height="{height}">'
        lines.add("images", f"{head}{masks}</image>")
        lines.add("keys", key_line(image))
        tally.counts["exported"] += 1
    return lines.lines()


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of annotations.xml and of keys.csv."""
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


def _mask(image: LabelledImage, segment: ExportSegment) -> str:
    left, top, width, height = segment.bbox
    mask = image.labels[top : top + height, left : left + width] == segment.id
    return (
        f'<mask label={quoteattr(segment.name)} source="auto" occluded="0" rle="{cvat_counts(mask)}" left="{left}" '
        f'top="{top}" width="{width}" height="{height}" z_order="0"></mask>'
    )
