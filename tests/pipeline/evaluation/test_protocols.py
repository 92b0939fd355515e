"""The classes, merges and word lists of published protocols, on ids as the data sets store them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffseg.segmentation import IGNORE
from pipeline.evaluation.layouts import LAYOUTS, STUFF_GAPS
from pipeline.evaluation.protocols import PROTOCOLS, ProtocolName, vocabulary
from pipeline.readers.names import NameSettings, parse_names


def classes_of(name: ProtocolName, ids: list[int]) -> list[int]:
    """Return the class of each id of the data set's files under a protocol; -1 where it is not scored."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([ids], np.uint8)).save(buffer, "PNG")
    (classes,) = LAYOUTS[PROTOCOLS[name].layout].merged(PROTOCOLS[name].merges).decode(buffer.getvalue())
    return [-1 if number == IGNORE else int(number) for number in classes[0]]


@pytest.mark.parametrize(
    ("name", "ids", "classes"),
    [
        ("voc21", [0, 1, 20, 255], [0, 1, 20, -1]),
        ("voc20", [0, 1, 20, 255], [-1, 0, 19, -1]),
        ("diffcut-voc", [0, 1, 20, 255], [20, 0, 19, 20]),
        ("context60", [0, 1, 59, 255], [0, 1, 59, -1]),
        ("context59", [0, 1, 59, 255], [-1, 0, 58, -1]),
        ("diffcut-context", [0, 1, 59, 255], [59, 0, 58, 59]),
        ("coco-object", [0, 10, 12, 89, 91, 181, 255], [1, 11, 12, 80, 0, 0, 0]),
        ("diffcut-coco-object", [0, 10, 12, 89, 91, 181, 255], [0, 10, 11, 79, 80, 80, 80]),
        ("coco-stuff-171", [0, 10, 12, 89, 91, 181, 255], [0, 10, 11, 79, 80, 170, -1]),
        ("cityscapes-19", [7, 8, 9, 11, 24, 29, 33, 0, 255], [0, 1, -1, 2, 11, -1, 18, -1, -1]),
        ("ade20k-150", [0, 1, 150], [-1, 0, 149]),
        ("diffcut-ade20k", [0, 1, 149, 150], [0, 1, 149, -1]),
        ("google-coco-stuff-27", [0, 91, 255], [9, 17, -1]),  # person and textile
        ("picie-cityscapes-27", [7, 33, 6, 255], [0, 26, -1, -1]),
    ],
)
def test_ids_become_the_classes_of_the_protocol(name: ProtocolName, ids: list[int], classes: list[int]) -> None:
    assert classes_of(name, ids) == classes


@pytest.mark.parametrize("name", PROTOCOLS)
def test_merges_cover_the_layout_and_the_words_are_unique(name: ProtocolName) -> None:
    described = PROTOCOLS[name]
    count = LAYOUTS[described.layout].classes
    assert count is not None
    assert len(described.merges) == count + 1
    reached = set(described.merges.tolist()) - {IGNORE}
    assert reached == set(range(described.protocol.classes))
    assert all(figures.source and 0 < figures.miou < 100 for figures in described.published)
    if described.protocol.matching == "names":
        assert len(described.words) == described.protocol.classes
        assert len(described.class_of_word) == sum(map(len, described.words))
        names = parse_names(vocabulary(name))
        assert NameSettings(names=names)
        assert len(names) == described.protocol.classes - (described.unnamed == 0)


def test_class_lists_have_the_published_sizes_and_ends() -> None:
    sizes: dict[ProtocolName, int] = {
        "voc21": 21,
        "voc20": 20,
        "context60": 60,
        "context59": 59,
        "coco-object": 81,
        "coco-stuff-171": 171,
    }
    sizes |= {"cityscapes-19": 19, "ade20k-150": 150}
    ends: dict[ProtocolName, tuple[str, str]] = {
        "voc20": ("aeroplane", "tv monitor"),
        "context59": ("aeroplane", "wood"),
        "coco-stuff-171": ("person", "wood"),
    }
    ends |= {
        "cityscapes-19": ("road", "bicycle"),
        "ade20k-150": ("wall", "flag"),
        "coco-object": ("person", "toothbrush"),
    }
    assert {name: PROTOCOLS[name].protocol.classes for name in sizes} == sizes
    for name, expected in ends.items():
        words = vocabulary(name).split(",")
        assert (words[0], words[-1]) == expected


def test_ids_of_coco_stuff_that_never_occur_are_refused() -> None:
    assert len(STUFF_GAPS) == 182 - 171
    with pytest.raises(ValueError, match="has the ids 11"):
        classes_of("coco-stuff-171", [11])
