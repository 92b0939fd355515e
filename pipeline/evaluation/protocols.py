"""Published protocols by data set: which pixels count, how segments become classes, and the figures that papers print.

The files in `classes/` hold the classes of each data set in the order of its ids, one a line. The words of a class are
separated by commas, and a segment with any of them as its name belongs to the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from diffseg.scoring.protocols import Protocol
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE
from pipeline.evaluation.layouts import LayoutName

ProtocolName = Literal[
    "google-coco-stuff-27",
    "google-cityscapes-27",
    "picie-coco-stuff-27",
    "picie-cityscapes-27",
    "diffcut-voc",
    "diffcut-context",
    "diffcut-coco-object",
    "diffcut-coco-stuff-27",
    "diffcut-cityscapes-27",
    "diffcut-ade20k",
    "voc21",
    "voc20",
    "context60",
    "context59",
    "coco-object",
    "coco-stuff-171",
    "cityscapes-19",
    "ade20k-150",
]

THINGS = 80
"""Classes of COCO-Stuff that are objects; they come first."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of a paper, in percent.

    Attributes:
        method: The method and its model.
        accuracy: Pixel accuracy; None where the source gives none.
        miou: Mean IoU.
        source: Where the figures are printed.
    """

    method: str
    accuracy: float | None = None
    miou: float
    source: str


@dataclass(frozen=True, kw_only=True)
class DatasetProtocol:
    """A published protocol on one data set.

    Attributes:
        protocol: How label maps are scored.
        layout: How the data set stores its ground truth.
        merges: Class of the protocol for each class of the layout, uint16 [classes + 1]. The last entry is for pixels
            that the layout ignores. 65535: not scored.
        images: Number of images behind the published figures.
        published: Published figures.
        words: Words of each class, for protocols that score names; a segment gets the class of the word that is its
            name.
        unnamed: Class of segments whose name is no word of any class: background, or 65535 for none.
    """

    protocol: Protocol
    layout: LayoutName
    merges: np.ndarray
    images: int
    published: tuple[Published, ...]
    words: tuple[tuple[str, ...], ...] = ()
    unnamed: int = IGNORE

    @property
    def class_of_word(self) -> dict[str, int]:
        """Class of each word."""
        return {word: number for number, words in enumerate(self.words) for word in words}


def read_classes(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the words of each class in a file of `classes/`, by its name without the extension."""
    text = resources.files("pipeline.evaluation").joinpath("classes", f"{name}.txt").read_text("utf-8")
    return tuple(tuple(word.strip() for word in line.split(",")) for line in text.splitlines())


def vocabulary(name: ProtocolName) -> str:
    """Return the first word of each class of a protocol, without background, as `diffseg label --names` takes them."""
    return ",".join(words[0] for words in PROTOCOLS[name].words if words[0] != "background")


def _merges(*classes: int, void: int = IGNORE) -> np.ndarray:
    return np.array([*classes, void], np.uint16)


GOOGLE, PICIE = View(crop="centre", size=512), View(crop="centre", size=320, sampling="picie")
DIFFCUT = View(crop="centre", size=128, sampling="diffcut")

CITYSCAPES_19 = (0, 1, 4, 5, 6, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 24, 25, 26)
"""The 19 classes that Cityscapes scores, by their positions among the 27 with ids from 7."""

DIFFCUT_SOURCE = "figures of arXiv 2406.02842 as listed by wizwand.com"
STEGO_SOURCE = "Papers with Code"
DIFFSEG_SOURCE = "CVPR 2024, from notes; not checked against the paper"
COCO_27_FIGURES = (
    Published(method="STEGO, DINO ViT-B/8", accuracy=56.9, miou=28.2, source=STEGO_SOURCE),
    Published(method="PiCIE, released weights", accuracy=50.3, miou=15.0, source="training log in janghyuncho/PiCIE"),
)


def _by_image(
    view: View, layout: LayoutName, merges: np.ndarray, images: int, *published: Published, background: bool = False
) -> DatasetProtocol:
    """Describe matching by image on the classes that `merges` yields."""
    classes = int(merges[merges != IGNORE].max()) + 1
    protocol = Protocol(view=view, classes=classes, matching="image", background=background)
    return DatasetProtocol(protocol=protocol, layout=layout, merges=merges, images=images, published=published)


def _diffcut(miou: float, diffseg: float) -> tuple[Published, Published]:
    return (
        Published(method="DiffCut", miou=miou, source=DIFFCUT_SOURCE),
        Published(method="DiffSeg, evaluated by DiffCut", miou=diffseg, source=DIFFCUT_SOURCE),
    )


def _by_dataset(layout: LayoutName, images: int, *published: Published) -> DatasetProtocol:
    return DatasetProtocol(
        protocol=Protocol(view=PICIE, classes=27, matching="dataset"),
        layout=layout,
        merges=_merges(*range(27)),
        images=images,
        published=published,
    )


def _by_name(
    layout: LayoutName,
    merges: np.ndarray,
    words: tuple[tuple[str, ...], ...],
    images: int,
    figures: tuple[float, float, float],
) -> DatasetProtocol:
    """Describe the scoring of names; `figures` are the mIoU of NACLIP, ProxyCLIP and Trident."""
    methods = ("NACLIP, CLIP ViT-B/16", "ProxyCLIP, OpenCLIP ViT-H/14", "Trident, OpenCLIP ViT-H/14")
    sources = ("README of sinahmr/NACLIP", "table in YuHengsss/Trident", "table in YuHengsss/Trident")
    rows = zip(methods, figures, sources, strict=True)
    return DatasetProtocol(
        protocol=Protocol(view=View(), classes=len(words), matching="names"),
        layout=layout,
        merges=merges,
        images=images,
        published=tuple(Published(method=method, miou=miou, source=source) for method, miou, source in rows),
        words=words,
        unnamed=0 if words[0] == BACKGROUND else IGNORE,
    )


BACKGROUND = ("background",)
VOC, CONTEXT, STUFF = map(read_classes, ("voc20", "context59", "coco-stuff-171"))

PROTOCOLS: dict[ProtocolName, DatasetProtocol] = {
    "google-coco-stuff-27": _by_image(
        GOOGLE,
        "coco-stuff",
        _merges(*range(27)),
        2175,
        Published(method="DiffSeg, SD 1.4, 512 px", accuracy=72.5, miou=43.6, source=DIFFSEG_SOURCE),
    ),
    "google-cityscapes-27": _by_image(
        GOOGLE,
        "cityscapes",
        _merges(*range(27)),
        500,
        Published(method="DiffSeg, SD 1.4, 512 px", accuracy=76.0, miou=21.2, source=DIFFSEG_SOURCE),
    ),
    "picie-coco-stuff-27": _by_dataset("coco-stuff", 2175, *COCO_27_FIGURES),
    "picie-cityscapes-27": _by_dataset(
        "cityscapes", 500, Published(method="STEGO, DINO ViT-B/8", accuracy=73.2, miou=21.0, source=STEGO_SOURCE)
    ),
    # Void counts as background here, because DiffCut gives both the same id.
    "diffcut-voc": _by_image(
        DIFFCUT, "voc", _merges(20, *range(20), void=20), 1449, *_diffcut(65.2, 49.8), background=True
    ),
    "diffcut-context": _by_image(
        DIFFCUT, "pascal-context", _merges(59, *range(59), void=59), 5105, *_diffcut(56.5, 48.8), background=True
    ),
    "diffcut-coco-object": _by_image(
        DIFFCUT,
        "coco-stuff-171",
        _merges(*range(THINGS), *[THINGS] * (len(STUFF) - THINGS), void=THINGS),
        2175,
        *_diffcut(34.1, 23.2),
        background=True,
    ),
    "diffcut-coco-stuff-27": _by_image(DIFFCUT, "coco-stuff", _merges(*range(27)), 2175, *_diffcut(49.1, 44.2)),
    "diffcut-cityscapes-27": _by_image(DIFFCUT, "cityscapes", _merges(*range(27)), 500, *_diffcut(30.6, 16.8)),
    # DiffCut reads ids 0 to 150 and scores 0 to 149: id 0, which means no class, counts and the last class does not.
    "diffcut-ade20k": _by_image(
        DIFFCUT, "ade20k", _merges(*range(1, 150), IGNORE, void=0), 2000, *_diffcut(44.3, 37.7)
    ),
    "voc21": _by_name("voc", _merges(*range(21)), (BACKGROUND, *VOC), 1449, (64.07, 65.0, 70.8)),
    "voc20": _by_name("voc", _merges(IGNORE, *range(20)), VOC, 1449, (83.03, 83.3, 88.7)),
    "context60": _by_name("pascal-context", _merges(*range(60)), (BACKGROUND, *CONTEXT), 5105, (34.99, 35.4, 40.1)),
    "context59": _by_name("pascal-context", _merges(IGNORE, *range(59)), CONTEXT, 5105, (38.35, 39.6, 44.3)),
    # Stuff and void count as background.
    "coco-object": _by_name(
        "coco-stuff-171",
        _merges(*range(1, THINGS + 1), *[0] * (len(STUFF) - THINGS), void=0),
        (BACKGROUND, *STUFF[:THINGS]),
        5000,
        (36.19, 38.6, 42.2),
    ),
    "coco-stuff-171": _by_name("coco-stuff-171", _merges(*range(171)), STUFF, 5000, (25.69, 26.8, 28.6)),
    "cityscapes-19": _by_name(
        "cityscapes",
        _merges(*(CITYSCAPES_19.index(number) if number in CITYSCAPES_19 else IGNORE for number in range(27))),
        read_classes("cityscapes-19"),
        500,
        (38.27, 42.0, 47.6),
    ),
    "ade20k-150": _by_name("ade20k", _merges(*range(150)), read_classes("ade20k-150"), 2000, (19.05, 24.2, 26.7)),
}
"""Protocols by the name given to --protocol."""
