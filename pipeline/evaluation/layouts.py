"""Ground truth as data sets lay it out: which files hold it, whose image each is of, and their bytes as label maps."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL.PngImagePlugin import PngImageFile
from scipy.io import loadmat

from diffseg.segmentation import IGNORE
from pipeline.evaluation.coco_classes import COCO_27, category_table
from pipeline.readers.samples import IMAGE_EXTENSIONS

MAX_PIXELS = 2**26

LayoutName = Literal["bsds500", "cityscapes", "ade20k-full", "ade20k", "voc", "coco-stuff", "coco-panoptic", "labels"]

Segments = Mapping[int, int]
"""Of one panoptic PNG: segment id to category id, as its JSON says."""


class TruthError(ValueError):
    """A truth that cannot be used; says what was found, what was expected, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one data set holds its truths.

    known: of the paths of its truths, as users have them on disk; other PNG files (.mat for BSDS500) are taken where
    none match. read: bytes of a file to ids, integer [H, W], one for each annotator. table: class of each id, 65535 for
    ids that must not occur; None: an id is its own class. ignore: ids that count for nothing; None: 255 where they have
    8 bits, 65535 where they have 16. classes: how many there are; None: those that occur, 0: regions without names.
    suffix, image_suffix: what the names of a truth and of its image end in, before the extension, and do not share.
    """

    known: str
    read: Callable[[bytes, Segments | None], list[np.ndarray]]
    table: np.ndarray | None = None
    ignore: tuple[int, ...] | None = None
    classes: int | None = None
    suffix: str = ""
    image_suffix: str = ""
    extension: str = "png"

    def ignoring(self, ids: tuple[int, ...] | None) -> Layout:
        """The same with other ids that count for nothing; None changes nothing."""
        return self if ids is None else replace(self, ignore=ids)

    def pairing_key(self, path: str) -> str:
        """What a truth's path and its image's have in common; also of keys, which may have no extension."""
        stem, dot, extension = path.rpartition(".")
        path = stem if dot and extension.lower() in (*IMAGE_EXTENSIONS, self.extension) else path
        for suffix in filter(None, (self.suffix, self.image_suffix)):
            path = path.removesuffix(suffix)
        return path

    def decode(self, data: bytes, segments: Segments | None = None) -> list[np.ndarray]:
        """Label maps of classes, uint16 [H, W], 65535 where they say nothing; one for each annotator.

        Raises TruthError.
        """
        return [self._classes(ids) for ids in self.read(data, segments)]

    def _classes(self, ids: np.ndarray) -> np.ndarray:
        ignored = self.ignore if self.ignore is not None else (int(np.iinfo(ids.dtype).max),)
        there = np.unique(ids)
        if self.table is None:
            if there[-1] > IGNORE:
                raise TruthError(f"has the id {there[-1]}; expected at most {IGNORE}")
            classes = ids.astype(np.uint16)
        else:
            bound = max(len(self.table), int(there[-1]) + 1)
            table = np.full(bound, IGNORE, np.uint16)
            table[: len(self.table)] = self.table
            strange = [int(i) for i in there if table[i] == IGNORE and i not in ignored]
            if strange:
                known = np.flatnonzero(self.table != IGNORE)
                raise TruthError(
                    f"has the ids {_some(strange)}; this layout knows {known[0]} to {known[-1]}, and ignores "
                    f"{_some(ignored)}. Name the right --layout, or --ignore them"
                )
            classes = table[ids]
        classes[np.isin(ids, ignored)] = IGNORE
        return classes


def _some(ids: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, ids[:5])) + (" …" if len(ids) > 5 else "")


def read_ids(data: bytes, segments: Segments | None = None) -> list[np.ndarray]:
    """A PNG of one channel, grey or with a palette: uint8 or uint16 [H, W]."""
    image = _open(data)
    if image.mode not in ("1", "L", "P", "I;16", "I"):
        raise TruthError(
            f"is a PNG of mode {image.mode}; expected one channel of ids (grey of 8 or 16 bits, or a palette). Colours "
            "must be turned into ids first; of COCO's panoptic PNGs and full ADE20K name the --layout"
        )
    ids = _pixels(image)
    depth, is_grey = data[24], data[25] == 0
    if is_grey and 1 < depth < 8:
        ids = ids // (255 // (2**depth - 1))  # Pillow stretches them to 0 … 255
    return [ids.astype(np.uint8 if depth <= 8 else np.uint16)]


def _read_colours(data: bytes) -> np.ndarray:
    image = _open(data)
    if image.mode not in ("RGB", "RGBA"):
        raise TruthError(f"is a PNG of mode {image.mode}; this layout has ids in the colours of RGB")
    return _pixels(image)[..., :3].astype(np.uint32)


def _open(data: bytes) -> PngImageFile:
    if not data.startswith(b"\x89PNG"):
        raise TruthError(
            f"is no PNG (it starts with {data[:8]!r}); expected a label map as PNG. In tars and Parquet files the "
            "truth's member or column is named by --truth-field"
        )
    try:
        image = PngImageFile(io.BytesIO(data))
    except Exception as error:  # of Pillow's parsers, whatever the bytes make them raise
        raise TruthError(f"is a broken PNG: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise TruthError(f"declares {image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")
    return image


def _pixels(image: PngImageFile) -> np.ndarray:
    try:
        return np.asarray(image)
    except Exception as error:
        raise TruthError(f"is a broken PNG: {error}") from error


def _read_full_ade(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """The class is in red and green; blue numbers the instances."""
    colours = _read_colours(data)
    return [colours[..., 0] // 10 * 256 + colours[..., 1]]


def _read_panoptic(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """A segment's id is in three colours; its category in the JSON. Pixels of no segment become category 0."""
    colours = _read_colours(data)
    found, places = np.unique(colours @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    categories = {0: 0, **(segments or {})}
    unknown = [int(i) for i in found if int(i) not in categories]
    if unknown:
        raise TruthError(f"has the segments {_some(unknown)}, which the JSON does not list; is it of this folder?")
    return [np.array([categories[int(i)] for i in found])[places].reshape(colours.shape[:2])]


def _read_bsds(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """The segmentation of each annotator."""
    try:
        cells = loadmat(io.BytesIO(data), variable_names=["groundTruth"])["groundTruth"]
        maps = [np.asarray(cell["Segmentation"][0, 0]) for cell in cells.ravel()]
    except Exception as error:
        raise TruthError(f"is no .mat file with groundTruth{{n}}.Segmentation: {error}") from error
    if not maps or any(ids.ndim != 2 or ids.dtype.kind not in "ui" for ids in maps):
        raise TruthError("holds no segmentations, or some that are not integers [H, W]")
    return maps


def _consecutive(first: int, count: int) -> np.ndarray:
    return np.concatenate([np.full(first, IGNORE), np.arange(count)]).astype(np.uint16)


LAYOUTS: dict[LayoutName, Layout] = {
    "bsds500": Layout(known=r"\.mat$", read=_read_bsds, ignore=(), classes=0, extension="mat"),
    "cityscapes": Layout(
        known=r"_gtFine_labelIds\.png$",
        read=read_ids,
        table=_consecutive(7, 27),
        ignore=(*range(7), 255),
        classes=27,
        suffix="_gtFine_labelIds",
        image_suffix="_leftImg8bit",
    ),
    "ade20k-full": Layout(known=r"ADE_\w+_\d{8}_seg\.png$", read=_read_full_ade, ignore=(0,), suffix="_seg"),
    "ade20k": Layout(known=r"ADE_\w+_\d{8}\.png$", read=read_ids, table=_consecutive(1, 150), ignore=(0,), classes=150),
    "voc": Layout(
        known=r"(^|/)SegmentationClass(Aug)?/[^/]+\.png$",
        read=read_ids,
        table=_consecutive(0, 21),
        ignore=(255,),
        classes=21,
    ),
    "coco-stuff": Layout(
        known=r"(stuffthingmaps|(^|/)annotation_(train|val)2017/).*\.png$",
        read=read_ids,
        table=category_table()[1:183],
        ignore=(255,),
        classes=len(COCO_27),
    ),
    "coco-panoptic": Layout(
        known=r"(^|/)panoptic_\w+/[^/]+\.png$",
        read=_read_panoptic,
        table=category_table(),
        ignore=(0,),
        classes=len(COCO_27),
    ),
    "labels": Layout(known=r"\.png$", read=read_ids),
}
"""By the name of --layout. The first whose `known` fits a path is taken where none is named."""


def recognise(paths: list[str]) -> LayoutName:
    """The name of the layout that these paths have; `labels` where they tell nothing."""
    fitting: Iterator[LayoutName] = (
        name for name, layout in LAYOUTS.items() if any(re.search(layout.known, path) for path in paths)
    )
    return next(fitting, "labels")
