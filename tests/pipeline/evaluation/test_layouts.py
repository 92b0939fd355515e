"""Decoding of each layout's files into class ids, and the errors for files that cannot be decoded."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from diffseg.segmentation import IGNORE
from pipeline.evaluation.coco_classes import COCO_27, category_table
from pipeline.evaluation.decoders import GroundTruthError
from pipeline.evaluation.layouts import LAYOUTS, recognise

CLASSES = Path(__file__).parents[4] / "shared" / "data" / "coco" / "classes.json"


def png(pixels: np.ndarray | list, dtype: type = np.uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, dtype)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(layout: str, data: bytes, segments: dict[int, int] | None = None) -> list:
    (classes,) = LAYOUTS[layout].decode(data, segments)
    assert classes.dtype == np.uint16
    return classes.tolist()


def test_coco_has_27_classes_of_the_published_sizes() -> None:
    table = category_table()
    names = list(COCO_27)
    sizes = Counter(names[place] for place in table[1:183])  # 91 things, 11 of them in no image, and 91 stuff
    assert sum(sizes.values()) == 182
    things = {"person": 1, "vehicle": 8, "outdoor": 6, "animal": 10, "accessory": 8, "sports": 10, "kitchen": 8}
    things |= {"food": 10, "furniture": 10, "electronic": 6, "appliance": 6, "indoor": 8}
    stuff = {"ceiling": 2, "floor": 6, "food-stuff": 4, "furniture-stuff": 11, "raw-material": 4, "textile": 11}
    stuff |= {"wall": 7, "window": 2, "building": 6, "ground": 11, "plant": 9, "sky": 2, "solid": 6}
    stuff |= {"structural": 5, "water": 5}
    assert sizes == things | stuff
    assert (sum(things.values()), sum(stuff.values())) == (91, 91)
    for category, name in ((1, "person"), (25, "animal"), (64, "furniture"), (106, "sky"), (149, "ground")):
        assert names[table[category]] == name
    assert table[183] == table[0] == IGNORE  # the category "other", and no category


@pytest.mark.skipif(not CLASSES.exists(), reason="COCO's category list is not beside the checkout")
def test_categories_have_the_supercategories_of_coco() -> None:
    table, names = category_table(), list(COCO_27)
    categories = json.loads(CLASSES.read_text())["categories"]
    assert {c["name"]: names[table[c["id"]]] for c in categories} == {c["name"]: c["supercategory"] for c in categories}


def test_coco_stuff_ids_start_at_zero_and_255_is_ignored() -> None:
    names = list(COCO_27)
    (row,) = decoded("coco-stuff", png([[0, 1, 90, 105, 181, 255]]))
    assert [names[c] for c in row[:5]] == ["person", "vehicle", "indoor", "sky", "solid"]
    assert row[5] == IGNORE


def test_panoptic_segments_get_the_class_of_their_category() -> None:
    names = list(COCO_27)
    ids = np.array([[0, 7, 300, 70_000]])
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
    (row,) = decoded("coco-panoptic", png(colours), {7: 1, 300: 184, 70_000: 1})
    assert row[0] == IGNORE
    assert [names[c] for c in row[1:]] == ["person", "plant", "person"]
    with pytest.raises(GroundTruthError, match="70000, which the JSON does not list"):
        decoded("coco-panoptic", png(colours), {7: 1, 300: 184})


def test_cityscapes_classes_start_at_road_and_void_is_ignored() -> None:
    assert decoded("cityscapes", png([[0, 6, 7, 23, 33, 255]])) == [[IGNORE, IGNORE, 0, 16, 26, IGNORE]]


def test_cityscapes_train_ids_are_the_classes_and_255_is_ignored() -> None:
    assert decoded("cityscapes-train-ids", png([[0, 6, 18, 255]])) == [[0, 6, 18, IGNORE]]
    with pytest.raises(GroundTruthError, match="ids 19; this layout defines 0 to 18"):
        decoded("cityscapes-train-ids", png([[19]]))


@pytest.mark.parametrize(("dtype", "ignored"), [(np.uint8, 255), (np.uint16, 65535)])
def test_tiff_label_maps_are_read(dtype: type, ignored: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 3, ignored]], dtype)).save(buffer, "TIFF")
    assert decoded("labels", buffer.getvalue()) == [[0, 3, IGNORE]]


def test_a_tiff_without_integer_ids_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0.5, 3.0]], np.float32)).save(buffer, "TIFF")
    with pytest.raises(GroundTruthError, match=r"TIFF of mode F with values from 0\.5 to 3\.0; expected one channel"):
        decoded("labels", buffer.getvalue())


def test_voc_ids_are_palette_indices_whatever_the_colours() -> None:
    image = Image.fromarray(np.array([[0, 15, 20, 255]], np.uint8)).convert("P")
    image.putdata([0, 15, 20, 255])
    image.putpalette([value for k in range(256) for value in (k * 37 % 256, k * 91 % 256, 255 - k)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert decoded("voc", buffer.getvalue()) == [[0, 15, 20, IGNORE]]


def test_ade20k_ignores_zero_and_full_ade20k_encodes_classes_as_colours() -> None:
    assert decoded("ade20k", png([[0, 1, 150]])) == [[IGNORE, 0, 149]]
    # red and green hold class 10 * 256 + 200, blue the instance; class 0 is unlabelled
    assert decoded("ade20k-full", png([[[103, 200, 7], [0, 0, 0], [0, 12, 1]]])) == [[2760, IGNORE, 12]]


def test_bsds_files_hold_one_map_per_annotator() -> None:
    maps = [np.array([[1, 1, 2]], np.uint16), np.array([[1, 2, 3]], np.uint16)]
    cells = np.empty((1, len(maps)), object)
    for number, labels in enumerate(maps):
        cells[0, number] = {"Segmentation": labels, "Boundaries": np.zeros_like(labels)}
    buffer = io.BytesIO()
    savemat(buffer, {"groundTruth": cells})
    read = LAYOUTS["bsds500"].decode(buffer.getvalue())
    assert [labels.tolist() for labels in read] == [labels.tolist() for labels in maps]
    with pytest.raises(GroundTruthError, match=r"is not a \.mat file"):
        LAYOUTS["bsds500"].decode(buffer.getvalue()[:200])


def test_plain_labels_ignore_the_largest_id_by_default() -> None:
    assert decoded("labels", png([[0, 7, 255]])) == [[0, 7, IGNORE]]
    assert decoded("labels", png([[0, 255, 65535]], np.uint16)) == [[0, 255, IGNORE]]
    (kept,) = LAYOUTS["labels"].with_ignored_ids((0, 3)).decode(png([[0, 3, 255]]))
    assert kept.tolist() == [[IGNORE, IGNORE, 255]]
    (everything,) = LAYOUTS["labels"].with_ignored_ids(()).decode(png([[0, 255]]))
    assert everything.tolist() == [[0, 255]]


def grey_png(depth: int, width: int, row: bytes, *, height: int = 1) -> bytes:
    """Return a grey PNG of one row, whatever height its header declares, of any bit depth that PNG optimisers use."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "row", "ids"), [(4, b"\x0f\x12", [0, 15, 1, 2]), (2, b"\x1b", [0, 1, 2, 3])])
def test_ids_of_low_bit_depth_are_not_rescaled(depth: int, row: bytes, ids: list[int]) -> None:
    assert decoded("labels", grey_png(depth, 4, row)) == [ids]
    assert decoded("labels", grey_png(1, 4, b"\x50")) == [[0, 1, 0, 1]]


def test_files_that_are_not_label_maps_are_refused_with_a_remedy() -> None:
    tiff = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tiff, "TIFF")
    complete = png(np.arange(4096).reshape(64, 64) % 7)
    huge = grey_png(8, 100_000, b"\0" * 10, height=90_000)
    for layout, data, message in (
        ("labels", png(np.zeros((2, 2, 3))), r"mode RGB; expected one channel.*--layout"),
        ("labels", png(np.zeros((2, 2, 4))), "mode RGBA"),
        ("voc", b"GIF89a", r"is not a PNG \(it starts with b'GIF89a'\).*--truth-field"),
        ("labels", tiff.getvalue()[:20], "broken TIFF"),
        ("labels", b"", "is not a PNG"),
        ("labels", complete[: len(complete) // 2], "broken PNG"),
        ("labels", complete[:20], "broken PNG"),
        ("labels", huge, "declares 100000 x 90000 pixels"),
        (
            "voc",
            png([[0, 21, 45]]),
            r"ids 21, 45; this layout defines 0 to 20 and ignores 255\. Set the right --layout",
        ),
        ("cityscapes", png([[34]]), "ids 34"),
        ("ade20k", png([[151]]), "ids 151"),
        ("coco-panoptic", png([[3]]), "mode L; this layout encodes ids as RGB colours"),
        ("ade20k-full", png([[3]]), "mode L"),
    ):
        with pytest.raises(GroundTruthError, match=message):
            LAYOUTS[layout].decode(data)


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png", "cityscapes"),
        ("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png", "cityscapes-train-ids"),
        ("BSDS500/data/groundTruth/test/100007.mat", "bsds500"),
        ("VOC2012/SegmentationClass/2007_000032.png", "voc"),
        ("annotations/validation/ADE_val_00000001.png", "ade20k"),
        ("ADE20K/validation/a/abbey/ADE_val_00000001_seg.png", "ade20k-full"),
        ("stuffthingmaps/val2017/000000000139.png", "coco-stuff"),
        ("annotation_val2017/000000000139.png", "coco-stuff"),
        ("annotations/panoptic_val2017/000000000139.png", "coco-panoptic"),
        ("masks27/000000000139.png", "labels"),
        ("gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_color.png", "labels"),
    ],
)
def test_paths_identify_the_layout(path: str, layout: str) -> None:
    assert recognise(["other/thing.png", path]) == layout


@pytest.mark.parametrize(
    ("layout", "ground_truth", "image"),
    [
        (
            "cityscapes",
            "frankfurt/frankfurt_000000_000294_gtFine_labelIds.png",
            "frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        ),
        ("cityscapes-train-ids", "val/aa_000000_gtFine_labelTrainIds.png", "val/aa_000000_leftImg8bit.png"),
        ("ade20k-full", "a/ADE_val_00000001_seg.png", "a/ADE_val_00000001.jpg"),
        ("bsds500", "test/100007.mat", "test/100007.jpg"),
        ("labels", "a/b.c.png", "a/b.c.JPEG"),
        ("labels", "22.0/1.1", "22.0/1.1"),
    ],
)
def test_ground_truth_and_its_image_share_a_pairing_key(layout: str, ground_truth: str, image: str) -> None:
    assert LAYOUTS[layout].pairing_key(ground_truth) == LAYOUTS[layout].pairing_key(image)
