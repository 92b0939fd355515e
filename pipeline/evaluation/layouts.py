"""How data sets lay out ground truth: which files hold it, which image each belongs to, and how to decode it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffseg.segmentation import IGNORE
from pipeline.evaluation.coco_classes import COCO_27, category_table
from pipeline.evaluation.decoders import (
    GroundTruthError,
    Segments,
    first_ids,
    read_bsds,
    read_full_ade,
    read_ids,
    read_panoptic,
)
from pipeline.readers.samples import IMAGE_EXTENSIONS

LayoutName = Literal[
    "bsds500",
    "cityscapes",
    "cityscapes-train-ids",
    "ade20k-full",
    "ade20k",
    "voc",
    "pascal-context",
    "coco-stuff",
    "coco-stuff-171",
    "coco-panoptic",
    "labels",
]

COCO_STUFF_PATHS = r"(stuffthingmaps|(^|/)annotation_(train|val)2017/).*\.png$"
"""Paths of ground-truth files of COCO-Stuff."""
STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Ids of COCO-Stuff whose categories were removed from COCO before its release."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one data set stores its ground truth.

    Attributes:
        path_pattern: Regular expression for the paths of ground-truth files as the data set ships them. Where no path
            matches, all files with one of `extensions` are used.
        read: Turns the bytes of a file into ids, integer [H, W], one array for each annotator.
        table: Class of each id, 65535 for ids that must not occur. None if each id is its own class.
        ignore: Ids that are not scored. None for the largest id: 255 in 8-bit files, 65535 in 16-bit files.
        classes: Number of classes; None for those that occur, 0 for regions without class names.
        merges: Class that each class becomes, uint16, 65535 for classes that are not scored; the last entry is for
            pixels that are ignored. None keeps the classes.
        suffix: End of a ground-truth file name, before the extension, that the image's name lacks.
        image_suffix: End of an image's file name, before the extension, that the ground truth's name lacks.
        extensions: File extensions of ground-truth files, in lower case.
    """

    path_pattern: str
    read: Callable[[bytes, Segments | None], list[np.ndarray]]
    table: np.ndarray | None = None
    ignore: tuple[int, ...] | None = None
    classes: int | None = None
    merges: np.ndarray | None = None
    suffix: str = ""
    image_suffix: str = ""
    extensions: tuple[str, ...] = ("png",)

    def with_ignored_ids(self, ids: tuple[int, ...] | None) -> Layout:
        """Return this layout with other ids excluded from scoring; None keeps the layout's own."""
        return self if ids is None else replace(self, ignore=ids)

    def merged(self, merges: np.ndarray) -> Layout:
        """Return this layout with its classes replaced by those of a protocol; see `merges`."""
        return replace(self, merges=merges, classes=int(merges[merges != IGNORE].max()) + 1)

    def pairing_key(self, path: str) -> str:
        """Return what the path of a ground-truth file and the path or key of its image have in common."""
        stem, dot, extension = path.rpartition(".")
        path = stem if dot and extension.lower() in (*IMAGE_EXTENSIONS, *self.extensions) else path
        for suffix in filter(None, (self.suffix, self.image_suffix)):
            path = path.removesuffix(suffix)
        return path

    def decode(self, data: bytes, segments: Segments | None = None) -> list[np.ndarray]:
        """Decode a ground-truth file into label maps.

        Args:
            data: Contents of the file.
            segments: Categories of the segments of a panoptic PNG.

        Returns:
            Class ids, uint16 [H, W], 65535 where pixels are not scored; one label map for each annotator.

        Raises:
            GroundTruthError: The file cannot be decoded, or holds ids that the layout does not define.
        """
        return [self._to_classes(ids) for ids in self.read(data, segments)]

    def _to_classes(self, ids: np.ndarray) -> np.ndarray:
        ignored = self.ignore if self.ignore is not None else (int(np.iinfo(ids.dtype).max),)
        present = np.unique(ids)
        if self.table is None:
            if present[-1] > IGNORE:
                raise GroundTruthError(f"has the id {present[-1]}; expected at most {IGNORE}")
            classes = ids.astype(np.uint16)
        else:
            size = max(len(self.table), int(present[-1]) + 1)
            table = np.full(size, IGNORE, np.uint16)
            table[: len(self.table)] = self.table
            unknown = [int(i) for i in present if table[i] == IGNORE and i not in ignored]
            if unknown:
                known = np.flatnonzero(self.table != IGNORE)
                raise GroundTruthError(
                    f"has the ids {first_ids(unknown)}; this layout defines {known[0]} to {known[-1]} and ignores "
                    f"{first_ids(ignored)}. Set the right --layout, or exclude these ids with --ignore"
                )
            classes = table[ids]
        classes[np.isin(ids, ignored)] = IGNORE
        return classes if self.merges is None else self.merges[np.minimum(classes, len(self.merges) - 1)]


def _stuff_table() -> np.ndarray:
    """Return the class of each id of COCO-Stuff: 80 objects and 91 stuff classes, without the 11 unused ids."""
    table = np.full(182, IGNORE, np.uint16)
    occurring = [number for number in range(182) if number not in STUFF_GAPS]
    table[occurring] = np.arange(len(occurring))
    return table


def _consecutive(first: int, count: int) -> np.ndarray:
    return np.concatenate([np.full(first, IGNORE), np.arange(count)]).astype(np.uint16)


LAYOUTS: dict[LayoutName, Layout] = {
    "bsds500": Layout(path_pattern=r"\.mat$", read=read_bsds, ignore=(), classes=0, extensions=("mat",)),
    "cityscapes": Layout(
        path_pattern=r"_gtFine_labelIds\.png$",
        read=read_ids,
        table=_consecutive(7, 27),
        ignore=(*range(7), 255),
        classes=27,
        suffix="_gtFine_labelIds",
        image_suffix="_leftImg8bit",
    ),
    "cityscapes-train-ids": Layout(
        path_pattern=r"_gtFine_labelTrainIds\.png$",
        read=read_ids,
        table=_consecutive(0, 19),
        ignore=(255,),
        classes=19,
        suffix="_gtFine_labelTrainIds",
        image_suffix="_leftImg8bit",
    ),
    "ade20k-full": Layout(path_pattern=r"ADE_\w+_\d{8}_seg\.png$", read=read_full_ade, ignore=(0,), suffix="_seg"),
    "ade20k": Layout(
        path_pattern=r"ADE_\w+_\d{8}\.png$", read=read_ids, table=_consecutive(1, 150), ignore=(0,), classes=150
    ),
    "voc": Layout(
        path_pattern=r"(^|/)SegmentationClass(Aug)?/[^/]+\.png$",
        read=read_ids,
        table=_consecutive(0, 21),
        ignore=(255,),
        classes=21,
    ),
    "pascal-context": Layout(
        path_pattern=r"(^|/)SegmentationClassContext/[^/]+\.png$",
        read=read_ids,
        table=_consecutive(0, 60),
        ignore=(255,),
        classes=60,
    ),
    "coco-stuff": Layout(
        path_pattern=COCO_STUFF_PATHS,
        read=read_ids,
        table=category_table()[1:183],
        ignore=(255,),
        classes=len(COCO_27),
    ),
    "coco-stuff-171": Layout(
        path_pattern=COCO_STUFF_PATHS, read=read_ids, table=_stuff_table(), ignore=(255,), classes=171
    ),
    "coco-panoptic": Layout(
        path_pattern=r"(^|/)panoptic_\w+/[^/]+\.png$",
        read=read_panoptic,
        table=category_table(),
        ignore=(0,),
        classes=len(COCO_27),
    ),
    "labels": Layout(path_pattern=r"\.(png|tiff?)$", read=read_ids, extensions=("png", "tif", "tiff")),
}
"""Layouts by the name given to --layout. Without the flag, the first whose `path_pattern` matches a path is used."""


def recognise(paths: list[str]) -> LayoutName:
    """Return the name of the layout that these paths follow, `labels` if they follow none of the others."""
    fitting: Iterator[LayoutName] = (
        name for name, layout in LAYOUTS.items() if any(re.search(layout.path_pattern, path) for path in paths)
    )
    return next(fitting, "labels")
