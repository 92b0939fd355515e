"""Formats of plain label maps: MMSegmentation, Ultralytics' semantic segmentation, and PNGs that mirror SRC.

A class map holds 0 for the background, 1, 2, … for the categories in their order, and 255 for pixels to ignore.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from diffseg import IGNORE
from diffseg.drawing.overlay import class_colour
from pipeline.exports.assemble import Fragments, LineLists, Lines, key_line, keys_file, write_source_image
from pipeline.exports.items import Export, ExportTask, LabelledImage
from pipeline.exports.tally import Tally
from pipeline.output.rows import IGNORE_8_BIT, encode_mask


def class_map(image: LabelledImage) -> np.ndarray:
    """Return the category of each pixel, uint16 [H, W]: 0 for the background, 65535 (`IGNORE`) for no segment."""
    table = np.full(IGNORE + 1, IGNORE, np.uint16)
    table[[segment.id for segment in image.segments]] = [segment.category for segment in image.segments]
    return table[image.labels]


def class_map_png(export: Export, image: LabelledImage) -> bytes:
    """Return the class map as a PNG: 8 bit (255 is ignored) if all categories fit, else 16 bit (65535 is ignored)."""
    classes = class_map(image)
    if len(export.categories) < IGNORE_8_BIT:
        return encode_mask(classes)
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, "PNG")
    return buffer.getvalue()


def require_8_bit(export: Export) -> None:
    """Check that class maps fit 8 bits, for formats whose readers expect that.

    Raises:
        ValueError: There are too many categories.
    """
    if len(export.categories) >= IGNORE_8_BIT:
        raise ValueError(
            f"{len(export.categories)} categories do not fit a PNG of 8 bit, which has {IGNORE_8_BIT - 1}: choose "
            "another format"
        )


def id2label(export: Export) -> bytes:
    """Return the JSON object of class names by value of a class map, as Transformers' configurations hold it."""
    return json.dumps(dict(enumerate(export.class_names)), indent=1, ensure_ascii=False).encode() + b"\n"


def write_mmseg(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write img_dir and ann_dir, and return lines of keys."""
    return _write_pairs(export, images, tally, image_folder="img_dir", map_folder="ann_dir")


def mmseg_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of metainfo.json, which a dataset takes as `metainfo`, and of keys.csv."""
    colours = [list(class_colour(name)) for name in export.class_names]
    metainfo = {"classes": export.class_names, "palette": colours}
    yield "metainfo.json", iter([json.dumps(metainfo, indent=1, ensure_ascii=False).encode() + b"\n"])
    yield keys_file(fragments)


def write_ultralytics(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write images and masks, and return lines of keys."""
    return _write_pairs(export, images, tally, image_folder="images", map_folder="masks")


def ultralytics_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of data.yaml, which names the folder of the masks, and of keys.csv."""
    yield "data.yaml", iter([data_yaml(export, export.class_names, "masks_dir: masks\n")])
    yield keys_file(fragments)


def data_yaml(export: Export, names: Iterable[str], further: str = "") -> bytes:
    """Return Ultralytics' description of a data set. Its paths are relative to the file itself."""
    comment = "" if export.val_share else "  # --val-share was not given, so validation sees images of the training"
    val = f"val: images/{'val' if export.val_share else 'train'}{comment}\n"
    classes = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
    return f"train: images/train\n{val}{further}names:\n{classes}".encode()


def _write_pairs(
    export: Export, images: Iterable[LabelledImage], tally: Tally, *, image_folder: str, map_folder: str
) -> Lines:
    require_8_bit(export)
    lines = LineLists()
    for image in images:
        write_source_image(export, image, f"{image_folder}/{image.part}")
        export.dest.write_bytes(f"{map_folder}/{image.part}/{image.name}.png", class_map_png(export, image))
        lines.add("keys", key_line(image))
        tally.counts["exported"] += 1
    return lines.lines()


def write_png(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write labels/, and images/ if they are included, with the folders of SRC, and return lines of keys."""
    lines = LineLists()
    for image in images:
        folder = f"/{image.part}" * bool(export.val_share)
        if image.source_image is not None:
            extension = image.file.rpartition(".")[2]
            export.dest.write_bytes(f"images{folder}/{image.path}.{extension}", image.source_image)
        png = class_map_png(export, image) if export.is_named else encode_mask(image.labels)
        export.dest.write_bytes(f"labels{folder}/{image.path}.png", png)
        lines.add("keys", key_line(image, image.path))
        tally.counts["exported"] += 1
    return lines.lines()


def png_files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of id2label.json for a run with names, and of keys.csv."""
    if export.is_named:
        yield "id2label.json", iter([id2label(export)])
    yield keys_file(fragments)
