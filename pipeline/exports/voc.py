"""PASCAL VOC: source images, palette PNGs of classes and of objects, and the list of images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from diffseg import IGNORE
from pipeline.exports.assemble import Fragments, LineLists, Lines, key_line, keys_file, write_source_image
from pipeline.exports.items import Export, ExportTask, LabelledImage
from pipeline.exports.tally import Tally

VOID = 255
"""Label of pixels in no segment."""


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write JPEGImages, SegmentationClass and SegmentationObject, and return lines of names and of keys.

    Raises:
        ValueError: There are more categories than a palette PNG can encode.
    """
    if len(export.categories) >= VOID:
        raise ValueError(
            f"{len(export.categories)} categories do not fit a palette PNG, which has {VOID - 1}: choose another format"
        )
    palette = voc_palette().tobytes()
    lines = LineLists()
    for image in images:
        if len(image.things) >= VOID:
            reason = f"{len(image.things)} segments do not fit a palette PNG, which has {VOID - 1}"
            tally.leave_out("too_many_segments", image.key, reason)
            continue
        write_source_image(export, image, "JPEGImages")
        for folder, numbers in (
            ("SegmentationClass", [segment.category for segment in image.things]),
            ("SegmentationObject", range(1, len(image.things) + 1)),
        ):
            table = np.zeros(IGNORE + 1, np.uint8)  # the background stays 0
            table[IGNORE] = VOID
            table[[segment.id for segment in image.things]] = numbers
            export.dest.write_bytes(f"{folder}/{image.name}.png", _png(table[image.labels], palette))
        lines.add(image.part, image.name)
        lines.add("keys", key_line(image))
        tally.counts["exported"] += 1
    return lines.lines()


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of the lists of images, of the list of classes, and of keys.csv."""
    for part in export.parts:
        yield f"ImageSets/Segmentation/{part}.txt", (name + b"\n" for name in fragments.lines(part))
    colours = voc_palette()
    classes = [
        f"{name}:{','.join(map(str, colours[i].tolist()))}::\n".encode()
        for i, name in enumerate(("background", *export.categories))
    ]
    yield "labelmap.txt", iter([b"# label:color_rgb:parts:actions\n", *classes])
    yield keys_file(fragments)


def voc_palette() -> np.ndarray:
    """Return PASCAL VOC's palette, uint8 [256, 3].

    Bits 0, 3 and 6 of a label are the highest bits of red, bits 1, 4 and 7 those of green, bits 2 and 5 those of blue.
    """
    labels = np.arange(256)[:, None]
    channel = np.arange(3)
    bits = [((labels >> (3 * i + channel)) & 1) << (7 - i) for i in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


def _png(labels: np.ndarray, palette: bytes) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(palette)  # changes the mode to P
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
