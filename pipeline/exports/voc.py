"""PASCAL VOC: photographs, palette PNGs of classes and of objects, and the list of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from diffseg import IGNORE
from pipeline.exports.assemble import Fragments, Lines, key_line, keys_file, write_photograph
from pipeline.exports.items import Export, Item, Part, Tally

VOID = 255


def write_part(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """JPEGImages, SegmentationClass and SegmentationObject; lines of names and keys."""
    if len(export.categories) >= VOID:
        raise ValueError(
            f"{len(export.categories)} categories; a palette PNG has room for {VOID - 1}: choose another format"
        )
    palette = voc_palette().tobytes()
    names, keys = [], []
    for item in items:
        if len(item.things) >= VOID:
            why = f"{len(item.things)} segments; a palette PNG has room for {VOID - 1}"
            tally.leave_out("too_many_segments", item.key, why)
            continue
        write_photograph(export, item, "JPEGImages")
        for folder, numbers in (
            ("SegmentationClass", [segment.category for segment in item.things]),
            ("SegmentationObject", range(1, len(item.things) + 1)),
        ):
            table = np.zeros(IGNORE + 1, np.uint8)  # what is background stays 0
            table[IGNORE] = VOID
            table[[segment.id for segment in item.things]] = numbers
            export.dest.write_bytes(f"{folder}/{item.name}.png", _png(table[item.labels], palette))
        names.append(f"{item.name}\n".encode())
        keys.append(key_line(item))
        tally.counts["exported"] += 1
    return {"names": b"".join(names), "keys": b"".join(keys)}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The list of all images, the classes, and the keys."""
    yield "ImageSets/Segmentation/train.txt", (name + b"\n" for name in fragments.lines("names"))
    colours = voc_palette()
    classes = [
        f"{name}:{','.join(map(str, colours[i].tolist()))}::\n".encode()
        for i, name in enumerate(("background", *export.categories))
    ]
    yield "labelmap.txt", iter([b"# label:color_rgb:parts:actions\n", *classes])
    yield keys_file(fragments)


def voc_palette() -> np.ndarray:
    """uint8 [256, 3], PASCAL VOC's own: bits 0, 3, 6 of a label from the top of red, 1, 4, 7 of green, 2, 5 of blue."""
    labels = np.arange(256)[:, None]
    channel = np.arange(3)
    bits = [((labels >> (3 * i + channel)) & 1) << (7 - i) for i in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


def _png(labels: np.ndarray, palette: bytes) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(palette)  # makes it an image of mode P
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
