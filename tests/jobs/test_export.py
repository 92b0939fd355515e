"""Tests of `diffseg export`: its files are read back by the library of each format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run
from PIL import Image
from pycocotools.coco import COCO

import jobs.export
from diffseg import IGNORE
from diffseg.drawing.overlay import class_colour, hexadecimal

# pycocotools decodes through an interface that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROTATED, HOSTILE, PLAIN, BROKEN = "rotated.jpg", "sub folder/é<&>.png", "b.png", "broken.png"


def labels_of(height: int, width: int, seed: int) -> np.ndarray:
    """Return a label map of blocks, uint16 [H, W], with a hole that is in no segment."""
    blocks = np.random.default_rng(seed).integers(0, 4, (height // 4, width // 5)).astype(np.uint16)
    labels = np.kron(np.unique(blocks, return_inverse=True)[1].reshape(blocks.shape), np.ones((4, 5))).astype(np.uint16)
    labels[2:5, 3:9] = IGNORE
    return labels


LABELS = {
    PLAIN: labels_of(20, 30, 0),
    BROKEN: None,
    HOSTILE: labels_of(24, 40, 1),
    ROTATED: labels_of(32, 20, 2),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run over a PNG, a PNG that failed, a PNG with a hostile key and a JPEG that EXIF rotates."""
    folder = tmp_path_factory.mktemp("export")
    for key in (PLAIN, BROKEN, HOSTILE):
        write_png(folder / "in" / key, source_image(key))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(source_image(ROTATED).transpose(1, 0, 2)[::-1]).save(folder / "in" / ROTATED, quality=95, exif=exif)
    write_run(folder / "out", dict(sorted(LABELS.items())), source=folder / "in")
    return folder / "out"


def source_image(key: str) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], of constant colour in each quarter, which JPEG preserves."""
    labels = LABELS[key]
    height, width = (20, 30) if labels is None else labels.shape
    image = np.full((height, width, 3), 60, np.uint8)
    image[: height // 2, : width // 2] = (200, 150, 90)
    return image


def pixels(path: Path) -> np.ndarray:
    """Return the pixels of a file as they are stored, without the rotation of EXIF."""
    with Image.open(path) as image:
        return np.asarray(image)


def keys_csv(folder: Path) -> list[dict[str, str]]:
    """Return the lines of keys.csv."""
    with open(folder / "keys.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def export(run: Path, dest: Path, to: str, *flags: str) -> int:
    return jobs.export.main([str(run), str(dest), "--to", to, "--processes", "1", *flags])


def test_coco_instances(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, tmp_path, "coco-instances") == 0
    assert "3 images; left out: 1 undecodable" in capsys.readouterr().err
    coco = COCO(tmp_path / "annotations/instances_train.json")
    images = {image["key"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert images.keys() == {PLAIN, HOSTILE, ROTATED}
    for key, image in images.items():
        assert image["file_name"] == key  # its path below SRC
        drawn = np.full((image["height"], image["width"]), IGNORE, np.uint16)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(annotation) == 1
            assert annotation["area"] == mask.sum() > 0
            x, y, width, height = annotation["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            drawn[mask] = annotation["id"] % 2**16
        np.testing.assert_array_equal(drawn, LABELS[key])
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["segment"]


def test_coco_panoptic(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "coco-panoptic", "--copy-images") == 0
    document = json.loads((tmp_path / "annotations/panoptic_train.json").read_bytes())
    images = {image["id"]: image for image in document["images"]}
    assert len(document["annotations"]) == len(images) == 3
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        rgb = pixels(tmp_path / "annotations/panoptic_train" / annotation["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        np.testing.assert_array_equal(np.where(ids == 0, IGNORE, ids - 1), LABELS[image["key"]])
        assert {s["id"]: s["area"] for s in annotation["segments_info"]} == {
            i: (ids == i).sum() for i in np.unique(ids[ids > 0])
        }
        copied = pixels(tmp_path / "images/train" / image["file_name"])
        np.testing.assert_allclose(copied, source_image(image["key"]), atol=30)  # JPEG blurs edges
    plain = next(image for image in images.values() if image["key"] == PLAIN)
    assert (tmp_path / "images/train" / plain["file_name"]).read_bytes() == (run.parent / "in" / PLAIN).read_bytes()


def test_voc(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "voc", "--without-names") == 0
    names = (tmp_path / "ImageSets/Segmentation/train.txt").read_text().split()
    keys = {row["name"]: row["key"] for row in keys_csv(tmp_path)}
    assert set(keys) == set(names)
    assert set(keys.values()) == {PLAIN, HOSTILE, ROTATED}
    for name, key in keys.items():
        with Image.open(tmp_path / f"SegmentationObject/{name}.png") as objects:
            assert objects.mode == "P"
            assert objects.getpalette()[3:6] == [128, 0, 0]
            ids = np.asarray(objects).astype(int)
        classes = pixels(tmp_path / f"SegmentationClass/{name}.png")
        np.testing.assert_array_equal(np.where(ids == 255, IGNORE, ids - 1), LABELS[key])
        np.testing.assert_array_equal(classes, np.where(LABELS[key] == IGNORE, 255, 1))
        with Image.open(tmp_path / f"JPEGImages/{name}.jpg") as image:
            assert (image.format, image.size) == ("JPEG", objects.size)


def test_huggingface(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    assert export(run, tmp_path / "dest", "huggingface") == 0
    loaded = datasets.load_dataset(str(tmp_path / "dest"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["label"], datasets.Image)
    rows = {row["key"]: row for row in loaded}
    assert rows.keys() == {PLAIN, HOSTILE, ROTATED}
    for key, row in rows.items():
        label = np.asarray(row["label"])
        np.testing.assert_array_equal(np.where(label == 255, IGNORE, label.astype(int)), LABELS[key])
        np.testing.assert_allclose(np.asarray(row["image"]), source_image(key), atol=30)
        assert {s["id"] for s in row["segments"]} == set(np.unique(label[label < 255]).tolist())


def test_label_studio(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "label-studio") == 0
    tasks = [task for path in sorted((tmp_path / "tasks").iterdir()) for task in json.loads(path.read_bytes())]
    tasks_by_key = {task["data"]["key"]: task for task in tasks}
    assert tasks_by_key.keys() == {PLAIN, HOSTILE, ROTATED}
    assert tasks_by_key[HOSTILE]["data"]["image"] == "/data/local-files/?d=in/sub%20folder/%C3%A9%3C%26%3E.png"
    interface = ElementTree.parse(tmp_path / "interface.xml").getroot()
    tag, image = interface.find("BrushLabels"), interface.find("Image")
    for key, task in tasks_by_key.items():
        for region in task["predictions"][0]["result"]:
            assert (region["from_name"], region["to_name"]) == (tag.get("name"), image.get("name"))
            assert (region["original_height"], region["original_width"]) == LABELS[key].shape
            assert region["value"]["brushlabels"] == ["segment"]
        assert len(task["predictions"][0]["result"]) == len(np.unique(LABELS[key])) - 1


def test_cvat(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "cvat") == 0
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == ["segment"]
    images = {image.get("name"): image for image in root.findall("image")}
    assert images.keys() == {PLAIN, HOSTILE, ROTATED}
    for key, image in images.items():
        union = np.zeros((int(image.get("height")), int(image.get("width"))), int)
        for mask in image.findall("mask"):
            left, top, width, height = (int(mask.get(name)) for name in ("left", "top", "width", "height"))
            lengths = [int(length) for length in mask.get("rle").split(",")]
            inside = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(height, width)
            union[top : top + height, left : left + width] += inside
        np.testing.assert_array_equal(union, LABELS[key] != IGNORE)  # every labelled pixel is in exactly one mask


def with_names(run: Path, to: Path) -> Path:
    """Copy OUT, and give its rows names and confidences."""
    for path in run.rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            (to / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(run)).write_bytes(path.read_bytes())
    for path in sorted((run / "labels").iterdir()):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["confidence"] = 0.2 if row["key"] == ROTATED else row["confidence"]
            for segment in row["segments"]:
                segment |= {"name": ("sky", "road", None)[min(segment["id"], 2)], "confidence": segment["id"] / 4}
        (to / "labels").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), to / "labels" / path.name)
    return to


def test_names_are_categories_and_uncertain_labels_are_left_out(run: Path, tmp_path: Path) -> None:
    named = with_names(run, tmp_path / "out")
    flags = ("--min-confidence", "0.5", "--min-segment-confidence", "0.2")
    assert export(named, tmp_path / "coco", "coco-instances", *flags) == 0
    coco = COCO(tmp_path / "coco/annotations/instances_train.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["road", "segment", "sky"]
    assert {image["key"] for image in coco.loadImgs(coco.getImgIds())} == {PLAIN, HOSTILE}
    kept = coco.loadAnns(coco.getAnnIds())
    assert {annotation["id"] % 2**16 for annotation in kept} == {1, 2, 3}
    assert all(annotation["category_id"] == (1 if annotation["id"] % 2**16 == 1 else 2) for annotation in kept)


def test_a_source_image_that_changed_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in (BROKEN, HOSTILE, ROTATED):
        write_png(tmp_path / "in" / key, source_image(key))
    write_png(tmp_path / "in" / PLAIN, np.zeros((7, 8, 3), np.uint8))
    flags = ("--images", str(tmp_path / "in"), "--json")
    assert export(run, tmp_path / "voc", "voc", "--without-names", *flags) == 1
    facts = json.load(io.StringIO(capsys.readouterr().out))
    assert facts["counts"] == {"exported": 2, "undecodable": 1, "no_photograph": 1}
    ((key, problem),) = facts["problems"]
    assert (key, "8 x 7" in problem) == (PLAIN, True)
    assert export(run, tmp_path / "other", "voc", "--images", str(tmp_path / "nowhere")) == 2
    assert "--images" in capsys.readouterr().err


def test_the_same_command_writes_its_files_again_and_another_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path, "cvat") == 0
    before = (tmp_path / "annotations.xml").read_bytes()
    assert export(run, tmp_path, "cvat") == 0
    assert (tmp_path / "annotations.xml").read_bytes() == before
    assert export(run, tmp_path, "coco-panoptic") == 2
    assert "choose an empty folder" in capsys.readouterr().err
    (tmp_path / ".diffseg-export.json").unlink()
    assert export(run, tmp_path, "cvat") == 2


def test_class_ids_are_those_of_the_run_and_background_is_not_an_object(run: Path, tmp_path: Path) -> None:
    """Segments 0 to 3: the second name, background, a score between the thresholds, and the first name.

    No segment has the third name.
    """
    named = with_names(run, tmp_path / "out")
    names = [("road", 0.9), ("background", 0.1), (None, 0.3), ("sky", 0.8)]
    for path in (named / "labels").iterdir():
        rows = pq.read_table(path).to_pylist()
        for segment in (segment for row in rows for segment in row["segments"]):
            segment["name"], segment["name_score"] = names[segment["id"]]
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    settings = json.loads((named / "run.json").read_bytes())
    settings["settings"]["naming"]["names"] = ["sky", "road", "sea"]
    (named / "run.json").write_text(json.dumps(settings))

    assert export(named, tmp_path / "voc", "voc") == 0
    name, labels = "b", LABELS[PLAIN]
    classes = np.select([labels == 0, labels == 1, labels == 3], [2, 0, 1], 255)
    np.testing.assert_array_equal(pixels(tmp_path / f"voc/SegmentationClass/{name}.png"), classes)
    objects = pixels(tmp_path / f"voc/SegmentationObject/{name}.png")
    np.testing.assert_array_equal(objects == 0, labels == 1)
    assert [line.split(":")[0] for line in (tmp_path / "voc/labelmap.txt").read_text().splitlines()[1:]] == [
        "background",
        "sky",
        "road",
        "sea",
    ]

    assert export(named, tmp_path / "coco", "coco-instances") == 0
    coco = COCO(tmp_path / "coco/annotations/instances_train.json")
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == {
        1: "sky",
        2: "road",
        3: "sea",
    }
    assert {(a["id"] % 2**16, a["category_id"]) for a in coco.dataset["annotations"]} == {(0, 2), (3, 1)}

    assert export(named, tmp_path / "cvat", "cvat") == 0
    root = ElementTree.parse(tmp_path / "cvat/annotations.xml").getroot()
    colours = {label.findtext("name"): label.findtext("color") for label in root.findall("meta/task/labels/label")}
    assert colours == {name: hexadecimal(class_colour(name)) for name in ("sky", "road", "sea")}
    assert {mask.get("label") for mask in root.iter("mask")} == {"sky", "road"}
