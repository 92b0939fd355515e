"""report.html of references: the retrieved images of each name with their seeds, in one file that needs no network."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from diffseg.images.decode import ImageError, decode_image
from diffseg.segmentation import borders
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import SourceImageError, SourceImages
from pipeline.readers.samples import Shard
from pipeline.references.state import RETRIEVAL, ReferenceReport, read_report
from pipeline.report.packing import reduced
from pipeline.report.templates import page_template
from pipeline.storage import SourceError, Storage
from pipeline.wording import counted

PAGE = "report.html"
IMAGES_SHOWN = 12
"""Largest number of images of a name that are shown, the best ones."""
NAMES_SHOWN = 200
"""Largest number of names that are shown, the first ones."""
SHARDS_READ = 8
"""Largest number of label shards whose images are shown, those with the most retrieved images. To read one image, all
of its shard may have to be read."""
SIDE = 180
"""Longest side of a picture in pixels."""
COLUMNS = ("key", "index", "status", "height", "width", "mask", "segments")

Place = tuple[str, int, int | None]
"""Label shard, index and seed of a retrieved image."""


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """A retrieved image on the page.

    Attributes:
        key: Its key.
        score: Its score in the retrieval.
        support: Support of its seed; None for a copy of another image.
        segment: Number of its seed; None for a copy.
        picture: A data URI; "" if the row has no label map.
    """

    key: str
    score: float
    support: float | None
    segment: int | None
    picture: str


def write_reference_page(
    state: Storage, out: Storage, manifest: Manifest, sources: Mapping[str, Shard], images_missing: str = ""
) -> None:
    """Write the page of a folder that `diffseg fit references` wrote.

    Args:
        state: The folder.
        out: OUT of the run that the references were learned from.
        manifest: Its run.json.
        sources: Shards with the images of the run, by name.
        images_missing: Why `sources` is empty; "" if it is not.

    Raises:
        SourceError: `diffseg fit references` has not written this folder.
    """
    report = read_report(state)
    if report is None:
        raise SourceError(f"{state.redacted}: expected the STATE of `diffseg fit references`, a folder")
    table = pq.read_table(io.BytesIO(state.read_bytes(RETRIEVAL))).to_pylist()
    read = [shard for shard, _ in Counter(row["shard"] for row in table).most_common(SHARDS_READ)]
    names = dict.fromkeys(row["name"] for row in table)
    chosen = choose_images(table, [*names][:NAMES_SHOWN], read)
    wanted: dict[str, set[tuple[int, int | None]]] = {}
    for row in (row for rows in chosen.values() for row in rows):
        wanted.setdefault(row["shard"], set()).add((row["index"], row["segment"]))
    pictures: dict[Place, str] = {}
    for shard in sorted(read_run_commits(out, manifest).done):
        if shard in wanted:
            source = sources.get(shard)
            pictures.update(pictures_of(out, shard, source, wanted[shard], manifest.settings["image_field"]))
    shown = {
        name: [
            ShownImage(
                key=row["key"],
                score=row["score"],
                support=row["support"],
                segment=row["segment"],
                picture=pictures.get((row["shard"], row["index"], row["segment"]), ""),
            )
            for row in rows
        ]
        for name, rows in chosen.items()
    }
    state.write_bytes(PAGE, render(report, shown, out.redacted, images_missing).encode())


def choose_images(
    table: Sequence[Mapping[str, Any]], names: Sequence[str], shards: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the retrieved images of each name that are shown, in the order of their ranks.

    Args:
        table: The rows of retrieval.parquet.
        names: The names that are shown.
        shards: The label shards whose images are shown.
    """
    chosen: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for row in table:
        rows = chosen.get(row["name"])
        if rows is not None and row["shard"] in shards and len(rows) < IMAGES_SHOWN:
            rows.append(row)
    return chosen


def pictures_of(
    out: Storage, shard: LabelShard, source: Shard | None, wanted: set[tuple[int, int | None]], image_field: str | None
) -> Iterator[tuple[Place, str]]:
    """Yield pictures of the rows of a label shard as data URIs.

    Args:
        out: OUT of the run.
        shard: The label shard.
        source: The source shard with its images; None if it is missing.
        wanted: The index and the seed of each picture.
        image_field: Image field of SRC.
    """
    indices = {index for index, _ in wanted}
    rows = [row for row in label_rows(out, shard, COLUMNS) if row["index"] in indices and row["mask"] is not None]
    keys = {row["index"]: row["key"] for row in rows}
    images = None if source is None else SourceImages(source, keys, out, image_field)
    for row in rows:
        pixels = None if images is None else _pixels(images, row)
        for index, segment in sorted(wanted, key=str):
            if index == row["index"]:
                number = None if segment is None else row["segments"][segment]["id"]
                yield (str(shard), index, segment), picture(pixels, decode_mask(row["mask"]), number)


def _pixels(images: SourceImages, row: Mapping[str, Any]) -> np.ndarray | None:
    """Return the source image of a row, uint8 [H, W, 3]; None if it cannot be read, or its size has changed."""
    try:
        pixels = decode_image(images.read(row["index"], row["key"]), min_side=1)
    except (SourceImageError, ImageError):
        return None
    return pixels if pixels.shape[:2] == (row["height"], row["width"]) else None


def picture(pixels: np.ndarray | None, labels: np.ndarray, seed: int | None) -> str:
    """Return a small picture as a data URI, in which the seed is outlined and the rest of the image is darker.

    Args:
        pixels: uint8 [H, W, 3] of the image; None shows the segments in shades of grey.
        labels: uint16 [H, W], its label map.
        seed: Label of the seed; None for a copy of another image, which is shown unchanged.
    """
    small = reduced(labels, SIDE)
    if pixels is None:
        shades = (90 + 37 * (small.astype(np.int64) % 4)).astype(np.uint8)
        image = np.repeat(shades[..., None], 3, axis=2)
    else:
        image = np.asarray(Image.fromarray(pixels).resize(small.shape[::-1], Image.Resampling.LANCZOS, reducing_gap=2))
    if seed is not None:
        inside = small == seed
        image = np.where(inside[..., None], image, (image * 0.4).astype(np.uint8))
        outline = borders(inside.astype(np.uint16))
        outline[1:, 1:] |= outline[:-1, :-1].copy()  # two pixels wide
        image = np.where(outline[..., None], np.array([255, 209, 0], np.uint8), image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(report: ReferenceReport, shown: Mapping[str, Sequence[ShownImage]], out: str, images_missing: str) -> str:
    """Return the page. Names and keys are escaped, so they appear as text whatever they contain."""
    return page_template("references.html").render(
        counted=counted,
        report=report,
        shown=shown,
        out=out,
        images_missing=images_missing,
        left=max(0, len(report.names) - len(shown)),
        settings=sorted((name, str(value)) for name, value in report.settings.items()),
        css=files("pipeline.report").joinpath("page", "page.css").read_text("utf-8"),
    )
